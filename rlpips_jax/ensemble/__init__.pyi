from .ensemble import (
    ESTIMATORS as ESTIMATORS,
)
from .ensemble import (
    KEEP as KEEP,
)
from .ensemble import (
    SAMPLES as SAMPLES,
)
from .ensemble import (
    Ensemble as Ensemble,
)
from .ensemble import (
    FeaturesOf as FeaturesOf,
)
from .ensemble import (
    check_samples as check_samples,
)
from .ensemble import (
    distance_under as distance_under,
)
from .ensemble import (
    distances as distances,
)
from .ensemble import (
    expectation as expectation,
)
from .ensemble import (
    unit_images as unit_images,
)
from .transformations import (
    Transformation as Transformation,
)
from .transformations import (
    level_probabilities as level_probabilities,
)
from .transformations import (
    sample_transformations as sample_transformations,
)
from .transformations import (
    transform as transform,
)
