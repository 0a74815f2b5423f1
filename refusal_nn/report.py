"""A page as data, and the one self-contained HTML file that is made of it: no script, nothing asked
of a network, whatever it shows escaped. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from refusal_nn import inline
from refusal_nn.hover import plain

# Nothing is loaded from anywhere; styles are the page's own, pictures within it are data.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
POLICY += "form-action 'none'"

TIED = re.compile(r" (?=%|\[[-\d>]|\(n=|nats\b|points\b|[-+\d.>]+\])")


@dataclass(frozen=True)
class Words:
    """Paragraphs, or a list of points."""

    lines: Sequence[str]
    listed: bool = False
    kind = "words"


@dataclass(frozen=True)
class Command:
    """Lines to be typed, or to be copied."""

    lines: Sequence[str]
    kind = "command"


@dataclass(frozen=True)
class Table:
    """The first column names its row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    kind = "table"


@dataclass(frozen=True)
class Picture:
    """An SVG file; caption: how it is read, which is also said to who cannot see it."""

    path: Path
    caption: str
    kind = "picture"


@dataclass(frozen=True)
class Fold:
    """What is shown when it is asked for."""

    summary: str
    blocks: Sequence[Block]
    kind = "fold"


Block = Words | Command | Table | Picture | Fold


@dataclass(frozen=True)
class Section:
    name: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Answer:
    """The first lines. tone: yes, part, no or open, which gives the colour."""

    question: str
    verdict: str
    tone: str
    lines: Sequence[str]
    missing: Sequence[tuple[str, str]]  # what, and the command that makes it


@dataclass(frozen=True)
class Page:
    title: str
    answer: Answer
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as an HTML document. Raises CorruptArtefact for a picture that is none."""
    numbers = iter(range(10**6))

    def drawn(picture: Picture) -> Markup:
        """Markup of our own making: parsed, filtered and written again by inline.svg."""
        return Markup(inline.svg(picture.path, f"f{next(numbers)}", plain(picture.caption)))

    return _template().render(page=page, drawn=drawn, policy=POLICY)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("pages")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # What cannot be seen, or turns the text around, is written out everywhere.
        finalize=lambda x: x if isinstance(x, Markup) else plain(x),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A number and its unit, a rate and its interval stay on one line.
    environment.filters["tied"] = lambda text: TIED.sub("\N{NO-BREAK SPACE}", text)
    return environment.get_template("report.html")
