"""Web pages in one file: text, numbers, tables, charts and pictures, readable without a network.

A page is a list of sections, and a section a list of blocks. `render` puts them into the template in `templates/`, with
the style sheet, charts as SVG and pictures as PNG, all inside. There is no script in it, and nothing is fetched. It is
light or dark as the reader's system is, and fits telephones and wide screens.

    sections = [Section("Scores", [Text("Of **600** triplets."), Table(("metric", "2AFC"), [("lpips-tiny", "0.99")])])]
    Path("report.html").write_text(render("A page", "What it says.", sections), encoding="utf-8")

Prose may have `code`, **emphasis** and [links](https://example.org/); everything else is shown as it is.
"""

import base64
import html
import io
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Shaped

from rlpips_jax._version import __version__
from rlpips_jax.errors import ReportError
from rlpips_jax.reports.charts import Chart

Picture = Shaped[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Source:
    """What a table, a chart or a picture was made by.

    Attributes:
        commands: as they can be typed.
        signatures: of the metrics.
    """

    commands: tuple[str, ...] = ()
    signatures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: the value.
        note: smaller, after it: an interval.
        best: whether it stands out.
    """

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Text:
    """Paragraphs of prose."""

    kind: ClassVar[str] = "text"
    paragraphs: tuple[str, ...]

    def __init__(self, *paragraphs: str) -> None:
        object.__setattr__(self, "paragraphs", paragraphs)


@dataclass(frozen=True)
class Number:
    """A number to be seen first.

    Attributes:
        value: as it is shown.
        label: what it is.
        note: smaller, below.
        tone: "good", "bad" or "".
    """

    value: str
    label: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Numbers:
    """A row of numbers to be seen first."""

    kind: ClassVar[str] = "numbers"
    numbers: Sequence[Number]


@dataclass(frozen=True)
class Table:
    """A table; on a narrow screen each row becomes a list.

    Attributes:
        header: of the columns; the first names the rows.
        rows: strings or cells.
        caption: prose above it.
        source: what it was made by.
        folded: whether it is closed at first, below a line with its caption.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    source: Source = Source()
    folded: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ReportError(f"a row has {len(row)} cells for {len(self.header)} columns: {row}")

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, all of cells."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Whether each column is of numbers, which stand to the right."""
        columns = zip(*self.cells, strict=True) if self.rows else [()] * len(self.header)
        return [all(re.match(r"[-+.\d]|inf|r =|$", cell.text) for cell in column) for column in columns]


@dataclass(frozen=True)
class Charts:
    """Charts beside each other with one legend.

    Attributes:
        charts: one or more.
        caption: prose below them.
        source: what they were made by.
    """

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]
    caption: str = ""
    source: Source = Source()

    @property
    def legend(self) -> list[tuple[str, int]]:
        """Labels and colours of all charts, each once."""
        return list(dict.fromkeys(entry for chart in self.charts for entry in chart.legend))


@dataclass(frozen=True)
class Shown:
    """A picture and what is said of it.

    Attributes:
        picture: uint8, or floats in [0, 1].
        title: below it.
        lines: below the title, smaller.
        tone: "good" or "bad" for a coloured edge; "" for none.
    """

    picture: Picture
    title: str
    lines: tuple[str, ...] = ()
    tone: str = ""

    @property
    def address(self) -> str:
        """The picture as an address that contains it."""
        return data_address(self.picture)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.picture.shape[1], self.picture.shape[0]


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures.

    Attributes:
        rows: each a heading and its pictures; an empty heading is left out.
        caption: prose above all.
        source: what they were made by.
        size: "small", "medium" or "large": how wide each picture is at most.
    """

    kind: ClassVar[str] = "pictures"
    rows: Sequence[tuple[str, Sequence[Shown]]]
    caption: str = ""
    source: Source = Source()
    size: str = "small"


@dataclass(frozen=True)
class Code:
    """Lines to be typed, or printed ones.

    Attributes:
        lines: of it.
        caption: prose above.
    """

    kind: ClassVar[str] = "code"
    lines: Sequence[str]
    caption: str = ""


Block = Text | Numbers | Table | Charts | Pictures | Code


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading, also in the list of sections.
        blocks: of it.
    """

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Its name in addresses."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: its heading.
        lead: prose below the heading.
        sections: in their order.

    Returns:
        HTML, complete in itself.
    """
    import jinja2  # Not at the top: few need it.

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlpips_jax.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["prose"] = prose
    template = environment.get_template("page.html")
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return template.render(title=title, lead=lead, sections=sections, version=__version__, made=made)


def prose(text: str) -> str:
    """Text as HTML: `code`, **emphasis** and [links](https://example.org/) are marked, everything else is escaped."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        f"<code>{html.escape(piece[1:-1])}</code>" if piece.startswith("`") and len(piece) > 2 else _marked(piece)
        for piece in pieces
    )


def _marked(text: str) -> str:
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
    return re.sub(r"\[([^\]]+)\]\(((?:https?://|#)[^\s)]+)\)", r'<a href="\2">\1</a>', escaped)


def data_address(picture: Picture) -> str:
    """A picture as an address that contains it as PNG.

    Args:
        picture: uint8, or floats in [0, 1].
    """
    from PIL import Image

    from rlpips_jax.reports.sheets import as_bytes

    file = io.BytesIO()
    Image.fromarray(as_bytes(picture)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
