"""ST-LPIPS: LPIPS over networks that were made, and trained, to be tolerant of shifts (Ghildyal and Liu 2022).

`rlpips-stalex` has heads that were trained under attack over the network of `stlpips-alex`.
"""

from dataclasses import replace

from rlpips_jax.backbones import STALEX, STVGG, Backbone
from rlpips_jax.distances.family import Family
from rlpips_jax.distances.lpips import Lpips, build, heads_part
from rlpips_jax.files.official import Official
from rlpips_jax.weights.parameters import with_heads
from rlpips_jax.weights.registry import Part, Recipe

CITATION = "Ghildyal, Liu: Shift-tolerant Perceptual Similarity Metric, ECCV 2022"

REVISION = "9a53cd5a2a3bc837c9a6e4445cc1ffb302127a74"


def _recipe(name: str, backbone: Backbone, file: str, *, sha256: str, size: int, parameters_sha256: str) -> Recipe:
    """A metric whose backbone and heads were trained together and are published in one file."""
    path = f"vST0.0/{file}"
    url = f"https://raw.githubusercontent.com/abhijay9/ShiftTolerant-LPIPS/{REVISION}/stlpips/weights/{path}"
    layout = with_heads(backbone)
    official = Official(path, url, sha256, size, "BSD-2-Clause", CITATION)
    return Recipe(
        name, layout, (Part(name, layout, ("backbone", "heads"), official, parameters_sha256),), {"version": "0.1"}
    )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        _recipe(
            "stlpips-alex",
            STALEX,
            "alex_shift_tolerant.pth",
            sha256="b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
            size=9_899_296,
            parameters_sha256="d3af07a2c25b3008e52a4b9a43a34d89dd9e434f2e9d415672b44a8aec4899b7",
        ),
        _recipe(
            "stlpips-vgg",
            STVGG,
            "vgg_shift_tolerant.pth",
            sha256="44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
            size=58_907_298,
            parameters_sha256="0bed0b33aefdc45ef32a94167949f082e96cb8b4416295fbc5fdfb7f59c0dd1f",
        ),
    )
}
"""Every ST-LPIPS by name."""

_ROBUST = heads_part("rlpips-stalex", STALEX, "146a1105ff125701b3b992be5fb9661f30c67525bcd3e093be785f726d928118")
RECIPES["rlpips-stalex"] = replace(
    RECIPES["stlpips-alex"], name="rlpips-stalex", parts=(_ROBUST, *RECIPES["stlpips-alex"].parts)
)

FAMILY = Family(RECIPES, build, Lpips)
"""ST-LPIPS, whose metrics are `Lpips` over another backbone."""
