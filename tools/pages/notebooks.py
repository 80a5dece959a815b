"""Executed notebooks as pages: their text, code, figures and printed lines, as they were saved."""

import base64
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@functools.cache
def read(path: Path) -> tuple[str, Mapping[str, bytes]]:
    """A notebook as a page.

    Args:
      path: of the .ipynb file.

    Returns:
      The page's Markdown, and the figures that it shows by name.
    """
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                parts.append(_shown(output, f"{path.stem}_{len(figures) + 1}.png", figures))
    return "\n\n".join(filter(None, parts)) + "\n", figures


def title(path: Path) -> str:
    """The first heading of a notebook."""
    return read(path)[0].partition("\n")[0].lstrip("# ")


def _shown(output: Mapping[str, Any], name: str, figures: dict[str, bytes]) -> str:
    """An output as Markdown; if it is a figure, it is kept under this name."""
    data = output.get("data", {})
    if "image/png" in data:
        figures[name] = base64.b64decode("".join(data["image/png"]))
        return f"![figure]({name})"
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""
