"""docs/equations.md names functions and tests that exist."""

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CELLS = re.compile(r"^\| (.+) \| (.+) \| `(fda_jax[\w.]+)` \| `(tests/[\w/.]+)::(\w+)` \|$")
NEEDED = ["Eq. 1", "Eq. 2", "Eq. 5", "6", "Eq. 9", "10", "Theorem 1", "11", "13", "14", "15-17"]
NEEDED += ["Alg. 1", "settings 1, 2, 3", "Bi-Real", "BinaryNet"]


def ledger_lines() -> list[str]:
    """Lines of the first table, without its two header lines."""
    text = (ROOT / "docs/equations.md").read_text()
    return [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")][2:]


def resolve(dotted: str) -> object:
    """The object of a dotted name: its longest importable head, then attributes."""
    names = dotted.split(".")
    for end in range(len(names), 0, -1):
        try:
            module = importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, names[end:], module)
    raise ModuleNotFoundError(dotted)


@functools.cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("line", ledger_lines())
def test_a_row_names_a_function_and_a_test_that_exist(line: str) -> None:
    row = CELLS.match(line)
    assert row, f"a row has an equation, a sentence, a function and a test, not: {line}"
    _, _, function, path, test = row.groups()
    assert callable(resolve(function))
    assert test.startswith("test_")
    assert test in functions_of(path)


@pytest.mark.parametrize("equation", NEEDED)
def test_every_equation_that_the_code_needs_has_a_row(equation: str) -> None:
    named = [line.split("|")[1] for line in ledger_lines()]
    assert any(re.search(rf"(?<![\d-]){re.escape(equation)}(?!\d)", cell) for cell in named)


def test_a_name_that_is_gone_is_noticed() -> None:
    with pytest.raises(AttributeError):
        resolve("fda_jax.ops.fourier.triangle_wave")
    assert "test_triangle" not in functions_of("tests/ops/test_fourier.py")
