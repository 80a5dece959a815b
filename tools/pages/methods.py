"""The pages of the methods: their table, and what a page gets that is not written by hand."""

from collections.abc import Mapping
from typing import Any

import yaml

from fda_jax.layers import METHODS
from tools.pages import configuration, measured
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


def appendix(name: str) -> str:
    """What follows the text of a method's page.

    Args:
      name: of `METHODS`.

    Returns:
      Its knobs, what has been measured, and where its row is documented.
    """
    return f"""

## Knobs

Set with `--config.KEY=VALUE` or `layers.make_method("{name}", ...)`.

{configuration.knobs(name)}

## Measured

{measured.results(name)}

Row of the table of methods: [`{name}`][fda_jax.layers.methods.{name}]. Terms and signs:
[how to read a page](index.md#how-to-read-a-page).
"""


def read_head(name: str) -> Mapping[str, Any]:
    """The front matter of a method's page: title, weights, activations, source."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
