"""A demonstration in one page: `python -m examples.demo`, or `make demo`.

A metric is fooled by a change that nobody sees, another holds; what can be proven, a minute of training, and what each
metric is made of. Nothing is downloaded: "lpips-tiny" and "rlpips-tiny" are part of the library, and the photographs
are those of scikit-image, or the reader's own. Official metrics are shown too if their weights are on this machine.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from examples import descended, distorted, fooled, trained
from examples.photographs import photographs
from examples.stage import Effort, Stage
from rlpips_jax.cli import guarded
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.files.atomic import replacing
from rlpips_jax.loading import find, load
from rlpips_jax.reports.page import Block, Code, Section, Text, render
from rlpips_jax.weights.inventory import availability

USUAL = Effort()
SHIPPED = ("lpips-tiny", "rlpips-tiny")
OFFICIAL = ("lpips-alex", "lpips-squeeze", "lpips-vgg")

TITLE = "How far can you trust a perceptual distance?"
LEAD = (
    "A perceptual distance says how different two pictures look. It agrees with people better than pixel errors do, "
    "until somebody optimises against it: then **a change that nobody sees** moves it at will. rlpips-jax measures "
    "that, proves what can be proven, and trains metrics that hold. Everything on this page was computed on this "
    "machine in {seconds:.0f} seconds."
)
NEXT = """rlpips distance a.png b.png --metric rlpips-tiny
rlpips attack original.png good.png bad.png --metric lpips-tiny --out attack/
rlpips report --data photographs/ --metric lpips-tiny --metric rlpips-tiny --out report.html
python -m training lin --photographs photographs/ --out runs/mine"""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Show how a metric is fooled by what nobody sees, and one that holds: a page, and its pictures, in a folder.

    Examples:
        python -m examples.demo --out demo/
        python -m examples.demo --out demo/ --images photographs/
    """

    out: Path = Path("demo")
    """Folder for the page and the pictures."""

    images: Path | None = None
    """Folder with your own photographs; the first eight are shown."""

    effort: Annotated[Effort, tyro.conf.Suppress] = USUAL
    """How much is computed."""

    def run(self) -> int:
        started = time.perf_counter()
        stage = Stage(photographs(self.images), _metrics(), self.out, self.effort)
        print(f"{len(stage.photographs)} photographs; {', '.join(stage.metrics)}", flush=True)
        for name, picture in stage.photographs.items():
            stage.keep(f"photographs/{name}.png", picture)
        sections = [
            *fooled.show(stage),
            trained.show(stage),
            descended.show(stage),
            fooled.certificate(stage),
            distorted.show(stage),
            _next(stage),
        ]
        seconds = time.perf_counter() - started
        page = self.out / "report.html"
        with replacing(page) as file:
            file.write(render(TITLE, LEAD.format(seconds=seconds), sections).encode())
        print("\n".join(stage.lines))
        print(f"\nPictures: {', '.join(map(str, stage.files))}")
        print("The commands of the page need: source .venv/bin/activate")
        print(f"Open this page in a browser ({seconds:.0f} s): {page}")
        return 0


def _metrics() -> dict[str, Metric]:
    """The shipped metrics, and the official ones whose weights are on this machine."""
    here = [name for name in OFFICIAL if availability(find(name), None).ready]
    return {name: load(name) for name in (*SHIPPED, *here)}


def _next(stage: Stage) -> Section:
    blocks: list[Block] = [
        Text(
            "With your own pictures, after `source .venv/bin/activate`. `rlpips SUBCOMMAND --help` has more examples, "
            "the README all the rest."
        ),
        Code(NEXT.splitlines()),
        Text("This page again, also with your own photographs:"),
        Code(["make demo", "make demo IMAGES=photographs/"]),
    ]
    return Section("Where to go next", blocks)


def main() -> None:
    """Runs the demonstration and exits with its status."""
    sys.exit(guarded(lambda: tyro.cli(Demo, prog="python -m examples.demo").run()))


if __name__ == "__main__":
    main()
