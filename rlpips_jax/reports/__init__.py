"""Results for people and programs: tables, JSON, CSV, heat maps and contact sheets; `reports.page` makes web pages."""

from rlpips_jax.files.decimals import decimal as decimal
from rlpips_jax.reports.sheets import LARGEST_PANEL as LARGEST_PANEL
from rlpips_jax.reports.sheets import MARGIN as MARGIN
from rlpips_jax.reports.sheets import Tile as Tile
from rlpips_jax.reports.sheets import contact_sheet as contact_sheet
from rlpips_jax.reports.sheets import heat as heat
from rlpips_jax.reports.sheets import heat_map as heat_map
from rlpips_jax.reports.text import cell as cell
from rlpips_jax.reports.text import csv_text as csv_text
from rlpips_jax.reports.text import few as few
from rlpips_jax.reports.text import json_text as json_text
from rlpips_jax.reports.text import plain as plain
from rlpips_jax.reports.text import table as table
