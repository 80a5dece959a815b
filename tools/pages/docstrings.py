"""Docstrings of the API reference: their fields Forward, Backward, Source, ... as a list."""

import re
from typing import Any

import griffe

FORMULAS = ("Forward", "Backward", "Slope", "Twin")
_FIELD = re.compile(
    rf"^({'|'.join(FORMULAS)}|Source|Laws|Layout|Parameters): +(\S.*(?:\n(?:  +\S.*))*)",
    re.MULTILINE,
)


class Fields(griffe.Extension):
    """What is one line under another in a docstring stays so in the page."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)


def as_list(docstring: str) -> str:
    """A docstring with its fields as items of a list, formulas set as code.

    Args:
      docstring: without indentation.

    Returns:
      Markdown.
    """

    def item(match: re.Match[str]) -> str:
        text = re.sub(r"\s*\n\s*", " ", match[2])
        return f"- **{match[1]}:** " + (f"`{text}`" if match[1] in FORMULAS else text)

    return _FIELD.sub(item, docstring)
