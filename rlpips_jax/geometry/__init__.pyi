from .average import STARTS as STARTS, Average as Average, average as average
from .descent import (
    BLOCK as BLOCK,
    LATE as LATE,
    PUBLISHED as PUBLISHED,
    STEPS as STEPS,
    Descent as Descent,
    Progress as Progress,
    Schedule as Schedule,
    published_rate as published_rate,
)
from .geodesic import Geodesic as Geodesic, crossfade as crossfade, geodesic as geodesic
from .pair_distances import distances as distances
