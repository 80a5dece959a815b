"""The reference of configuration keys and methods' knobs, made from the files that state them."""

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from fda_jax.layers import METHODS
from tools.pages.comments import keys_of_base, knobs_of_methods
from tools.pages.repository import ROOT

CONFIGS = ROOT / "configs"


def reference() -> str:
    """Tables of every key of configs/base.py, one for each group."""
    config = _module("base").get_config()
    parts: dict[str, list[tuple[str, object, str]]] = {}
    for key, meaning in keys_of_base((CONFIGS / "base.py").read_text(encoding="utf-8")).items():
        if key not in ("method", "stages"):
            group = key.partition(".")[0] if "." in key else ""
            parts.setdefault(group, []).append((key, _value(config, key), meaning))
    titles = {"": "The run"}
    return "\n\n".join(
        f"## {titles.get(group, f'`{group}`')}\n\n{_table(rows)}" for group, rows in parts.items()
    )


def knobs(method: str) -> str:
    """A table of a method's knobs; their defaults are the row's own.

    Args:
      method: a name of `METHODS`.

    Returns:
      Markdown; a sentence where there are none.
    """
    meanings = _meanings()[method]
    rows = [
        (f"method.{name}", parameter.default, meanings[name])
        for name, parameter in inspect.signature(METHODS[method]).parameters.items()
    ]
    return _table(rows) if rows else "None."


def configurations() -> str:
    """The configuration files: what each is for, and its command."""
    rows = ["| file | what it trains |", "| --- | --- |"]
    for path in _files():
        rows.append(f"| [`{path.name}`](../configs/{path.name}) | {_first_sentence(path)} |")
    return "\n".join(rows)


def _files() -> list[Path]:
    imported = ("base.py", "methods.py")
    return [path for path in sorted(CONFIGS.glob("*.py")) if path.name not in imported]


def _first_sentence(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n\n")[0].replace("\n", " ")


def _table(rows: list[tuple[str, object, str]]) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, value, meaning in rows:
        shown = f"`{value!r}`".replace("'", '"')
        cells = (f"`{key}`", type(value).__name__, shown, meaning.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _value(config: Mapping, key: str) -> object:
    return functools.reduce(lambda group, name: group[name], key.split("."), config)


@functools.cache
def _meanings() -> dict[str, dict[str, str]]:
    return knobs_of_methods((CONFIGS / "methods.py").read_text(encoding="utf-8"))


def _module(name: str) -> ModuleType:
    # Configurations import one another by bare name.
    if str(CONFIGS) not in sys.path:
        sys.path.insert(0, str(CONFIGS))
    return importlib.import_module(name)
