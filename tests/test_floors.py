"""Imports point down only, and every outside library has one home."""

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FLOORS = {
    "ops": 0,
    "layers": 1,
    "models": 2,
    "data": 2,
    "training": 3,
    "deploy": 3,
    "experiment": 4,
    "report": 5,
    "doctor": 5,
    "export": 5,
    "summary": 5,
    "train": 5,
}
SIBLINGS = {("models", "data"), ("data", "models")}
# Library: the files below fda_jax/ (or folders) that may import it.
HOMES = {
    "orbax": ("training/checkpoints.py",),
    "optax": (
        "training/optimizer.py",
        "training/losses.py",
        "training/step.py",
        "training/state.py",
        "experiment/setup.py",
    ),
    "tensorflow": (),
    "tensorflow_datasets": ("data/",),
    "grain": ("data/",),
    "PIL": ("data/",),
    "matplotlib": (
        "experiment/figures.py",
        "experiment/sweep_figures.py",
        "experiment/paper_figures.py",
    ),
    "scipy": ("experiment/pairs.py",),
    "tensorboardX": ("experiment/logs.py",),
    "ml_collections": (),
    "absl": (),
    "chex": (),
}
SOURCES = sorted((REPOSITORY / "fda_jax").rglob("*.py"))


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def part_of(module: str) -> str | None:
    words = module.split(".")
    return words[1] if words[0] == "fda_jax" and len(words) > 1 and words[1] in FLOORS else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_imports_from_a_floor_above_it(path):
    relative = path.relative_to(REPOSITORY / "fda_jax")
    mine = relative.parts[0].removesuffix(".py")
    if mine not in FLOORS:
        return
    for module in imports(path):
        theirs = part_of(module)
        if theirs is None:
            continue
        assert FLOORS[theirs] <= FLOORS[mine], (
            f"{relative}, floor {FLOORS[mine]}, imports {module}, floor {FLOORS[theirs]}"
        )
        assert (mine, theirs) not in SIBLINGS, f"{relative} imports its sibling {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_outside_library_is_imported_in_its_home_only(path):
    relative = str(path.relative_to(REPOSITORY / "fda_jax"))
    for module in imports(path):
        homes = HOMES.get(module.split(".")[0])
        if homes is not None:
            assert relative.startswith(homes), f"{relative} imports {module}: its home is {homes}"


def test_pmap_is_named_in_one_file_only():
    named = {
        str(path.relative_to(REPOSITORY))
        for path in SOURCES
        if any(
            isinstance(node, ast.Attribute) and node.attr == "pmap"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert named == {"fda_jax/training/devices.py"}


def test_configurations_import_ml_collections_and_one_another_only():
    configs = sorted((REPOSITORY / "configs").glob("*.py"))
    allowed = {"ml_collections", "difflib", *(path.stem for path in configs)}
    for path in configs:
        # Only the package finds a method of one's own.
        own = {"fda_jax"} if path.stem == "methods" else set()
        assert {module.split(".")[0] for module in imports(path)} <= allowed | own, path


def test_the_mathematics_needs_jax_and_numpy_alone():
    standard = {"dataclasses", "collections", "types", "typing", "functools", "math"}
    for path in (REPOSITORY / "fda_jax" / "ops").glob("*.py"):
        if path.name == "native.py":  # the one home of the C++ compiler
            continue
        outside = {module.split(".")[0] for module in imports(path)}
        assert outside <= standard | {"jax", "numpy", "fda_jax"}, path
