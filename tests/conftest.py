"""Four simulated devices for every test, before JAX starts its backend; and small runs."""

import importlib
import os
import sys
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
# Processes that a test starts leave the cache of the user who runs the tests alone.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "configs"))


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory) -> Path:
    """A folder that keeps compiled programs, so that the same small run compiles once."""
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def small_config(**changes: object) -> dict:
    """Two epochs of the digits in five steps each; keys are dotted paths."""
    config = importlib.import_module("digits_resnet").get_config()
    config.update_from_flattened_dict(
        {
            "train.epochs": 2,
            "train.batch_size": 320,
            "eval.batch_size": 200,
            "optimizer.learning_rate": 0.02,
            **changes,
        }
    )
    return config.to_dict()
