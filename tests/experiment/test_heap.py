"""Memory of compiled programs: pages are kept from call to call."""

import ctypes
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

# Prints the page faults of five calls of a program with 64 MiB of temporaries, and whether it runs
# on a thread of its own.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from fda_jax.experiment import heap

if sys.argv[1] == "reuse":
    heap.reuse_pages()
x = jnp.ones((4096, 1))
call = jax.jit(lambda x: jnp.dot(x @ x.T, x).sum())
[call(x).block_until_ready() for _ in range(2)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
[call(x).block_until_ready() for _ in range(5)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(jax.config.values["jax_cpu_enable_async_dispatch"])
"""


def run(argument, flags=""):
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    faults, is_async = done.stdout.split()
    return int(faults), is_async


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_the_temporaries_of_a_program_lie_where_they_lay_in_the_call_before():
    anew = run("leave")[0]
    assert anew > 40_000  # 5 x 64 MiB are 81,920 pages
    assert run("reuse")[0] < anew / 2  # now and then a piece finds no place once


@pytest.mark.slow
def test_simulated_devices_keep_their_threads():
    assert run("reuse", "--xla_force_host_platform_device_count=2")[1] == "True"
