"""The pages of the methods, and their table."""

from collections.abc import Mapping
from typing import Any

import yaml

from fda_jax.layers import METHODS
from tools.pages.repository import DOCS

PAGES = DOCS / "methods"
# The table's order, but for the one that all others are compared with.
NAMES = sorted(METHODS, key=lambda name: name != "fda")
COLUMNS = ("name", "method", "weights: slope, scale", "activations: slope", "source")


def overview() -> str:
    """The table of all methods, a row from the head of each page."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    for name in NAMES:
        head = read_head(name)
        cells = (head[key] for key in ("title", "weights", "activations", "source"))
        lines.append(f"| [`{name}`]({name}.md) | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def read_head(name: str) -> Mapping[str, Any]:
    """The front matter of a method's page: title, weights, activations, source."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
