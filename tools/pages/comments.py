"""The keys of the configuration files with what the comments there say of them."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator


def keys_of_base(source: str) -> dict[str, str]:
    """The keys that a configuration function sets: `config.KEY = VALUE`, or a ConfigDict of some.

    Args:
      source: text of configs/base.py.

    Returns:
      Dotted key -> meaning, in the file's order; "" where no comment stands above or beside a key.
      A group that another function makes is one key.
    """
    comments = _Comments(source)
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)):
            continue
        group, value = node.targets[0].attr, node.value
        if isinstance(value, ast.Call) and value.args and isinstance(value.args[0], ast.Dict):
            entries = _entries(value.args[0], comments)
            found |= {f"{group}.{key}": meaning for key, meaning in entries}
        else:
            found[group] = comments.of(node)
    return found


def knobs_of_methods(source: str) -> dict[str, dict[str, str]]:
    """The knobs of every method.

    Args:
      source: text of configs/methods.py: KNOBS, which holds a dictionary for each method, and
        others at the top level, which those may spread into themselves.

    Returns:
      Method -> knob -> meaning. A knob without a comment means what the first comment in the file
      on a knob of that name says.
    """
    comments = _Comments(source)
    tables: dict[str, ast.Dict] = {}
    first: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            tables |= {name.id: node.value for name in node.targets if isinstance(name, ast.Name)}
    for table in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict)):
        first = {**{knob: text for knob, text in _entries(table, comments) if text}, **first}

    def knobs(table: ast.Dict) -> dict[str, str]:
        spread = [tables[value.id] for value in table.values if isinstance(value, ast.Name)]
        found = {knob: text for part in spread for knob, text in knobs(part).items()}
        for knob, text in _entries(table, comments):
            found[knob] = text or found.get(knob) or first.get(knob, "")
        return found

    methods = zip(tables["KNOBS"].keys, tables["KNOBS"].values, strict=True)
    return {
        str(key.value): knobs(value)
        for key, value in methods
        if isinstance(key, ast.Constant) and isinstance(value, ast.Dict)
    }


def _entries(table: ast.Dict, comments: "_Comments") -> Iterator[tuple[str, str]]:
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant):
            yield str(key.value), comments.of(key, value)


class _Comments:
    """The comments of a file, by the lines they belong to."""

    def __init__(self, source: str) -> None:
        self._beside: dict[int, str] = {}
        self._alone: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                place = self._beside if token.line[: token.start[1]].strip() else self._alone
                place[token.start[0]] = token.string.lstrip("# ").rstrip()

    def of(self, first: ast.expr | ast.stmt, last: ast.expr | None = None) -> str:
        """The comment lines right above a node, and the comment on its last line."""
        above: list[str] = []
        line = first.lineno - 1
        while line in self._alone:
            above.insert(0, self._alone[line])
            line -= 1
        end = (last or first).end_lineno or first.lineno
        return re.sub(r"\s+", " ", " ".join([*above, self._beside.get(end, "")])).strip()
