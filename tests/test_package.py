"""The package as a user meets it: light to import, typed, importable without TensorFlow."""

import importlib.resources
import os
import subprocess
import sys

from tests.conftest import REPOSITORY

HEAVY = ("tensorflow", "tensorflow_datasets", "grain", "PIL", "matplotlib", "ml_collections")


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    return done.stdout


def test_the_package_imports_none_of_the_heavy_libraries():
    loaded = python(
        "import sys\n"
        f"for name in {HEAVY}: sys.modules[name] = None\n"  # importing one would fail
        "import fda_jax\n"
        "from fda_jax import ops, layers, models, data, experiment\n"
        "print(sorted(name for name in sys.modules if sys.modules[name] is not None\n"
        f"      and name.split('.')[0] in {HEAVY}))"
    )
    assert loaded.strip() == "[]"


def test_the_python_interface_of_the_readme_runs():
    readme = (REPOSITORY / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 16
    assert "(8, 10)" in python(code)


def test_the_package_is_marked_as_typed():
    assert importlib.resources.files("fda_jax").joinpath("py.typed").is_file()
