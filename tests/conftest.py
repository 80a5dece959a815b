"""Four simulated devices for every test, programs that are compiled once, and small runs."""

import atexit
import doctest
import gc
import importlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit what is set here
    # XLA takes longer to optimise most programs of the tests than these take to run.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    # One folder for both workers and the processes that tests start; no other session sees it, but
    # those of a CI run, which names one for all of them.
    if "FDA_JAX_TEST_PROGRAMS" not in os.environ:
        os.environ["FDA_JAX_TEST_PROGRAMS"] = tempfile.mkdtemp(prefix="fda_jax_programs_")
        atexit.register(shutil.rmtree, os.environ["FDA_JAX_TEST_PROGRAMS"], ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["FDA_JAX_TEST_PROGRAMS"]
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
# Tracing makes many objects, and looking for cycles among them every few hundred takes its time.
gc.set_threshold(100_000, 20, 20)

if jax.__version__.startswith("0.10."):
    # This XLA can compile fusions in two ways; the older one, which later versions have no more,
    # takes half the time. Programs that are compiled as users compile them take the newer one.
    from jax._src import compiler

    with_defaults = compiler.get_compile_options

    def with_older_fusions(*args, **kwargs):
        options = with_defaults(*args, **kwargs)
        if options.executable_build_options.debug_options.xla_backend_optimization_level == 0:
            older = ("xla_cpu_use_fusion_emitters", False)
            options.env_option_overrides = [*options.env_option_overrides, older]
        return options

    compiler.get_compile_options = with_older_fusions

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "configs"))


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="module")
def optimized():
    """Programs are compiled as users compile them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The rule and the row of docs/add_a_method.md as a file mine.py in the current folder."""
    yield from _file_of_a_page("mine", "add_a_method.md", (0, 2), tmp_path, monkeypatch)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The networks of docs/add_a_network.md as a file nets.py in the current folder."""
    yield from _file_of_a_page("nets", "add_a_network.md", (0, 1), tmp_path, monkeypatch)


def _file_of_a_page(module, page, chosen, folder, monkeypatch):
    text = (REPOSITORY / "docs" / page).read_text()
    blocks = re.findall(r"```pycon\n(.*?)```", text, re.DOTALL)
    parse = doctest.DocTestParser().get_examples
    code = "".join(example.source for i in chosen for example in parse(blocks[i]))
    sys.modules.pop(module, None)
    (folder / f"{module}.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    yield {"mine": "mine:raised_cosine", "nets": "nets:dense"}[module]
    sys.modules.pop(module, None)


# A method without noise or a series: programs of it are traced and compiled in half the time.
STE = {"name": "ste", "scale": "layer", "window": 1.5}


def small_config(**changes: object) -> dict:
    """Two epochs of the digits in five steps each, for `tiny`; keys are dotted paths."""
    config = importlib.import_module("digits_resnet").get_config()
    config.update_from_flattened_dict(
        {
            "model.name": "tiny",
            "train.epochs": 2,
            "train.batch_size": 320,
            "eval.batch_size": 200,
            "optimizer.learning_rate": 0.02,
            **changes,
        }
    )
    return config.to_dict()
