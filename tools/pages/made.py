"""Parts of pages that are made from code and records: between two comments, and committed."""

import re
from collections.abc import Callable
from pathlib import Path

from tools.pages import citation, configuration, measured, methods
from tools.pages.repository import DOCS

PART = re.compile(r"(<!-- made by python -m tools\.pages: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MADE: dict[str, Callable[[Path], str]] = {
    "citation": lambda _: citation.bibtex(),
    "configurations": lambda _: configuration.configurations(),
    "keys": lambda _: configuration.reference(),
    "knobs": lambda page: configuration.knobs(page.stem),
    "measured": lambda page: measured.results(page.stem),
    "methods": lambda _: methods.overview(),
}


def pages() -> list[Path]:
    """The pages with such parts."""
    return [path for path in sorted(DOCS.rglob("*.md")) if PART.search(path.read_text())]


def filled(page: Path) -> str:
    """The text of a page with its parts made anew."""
    return PART.sub(
        lambda part: f"{part[1]}\n{MADE[part[2]](page)}\n\n{part[3]}",
        page.read_text(encoding="utf-8"),
    )
