"""Runs as processes of their own: killed, stopped by a signal, and two that train together."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.experiment.conftest import assert_same_run, rows

FLAGS = [
    "--config=configs/digits_resnet.py",
    "--config.train.epochs=2",
    "--config.train.batch_size=320",
    "--config.eval.batch_size=200",
    "--config.optimizer.learning_rate=0.02",
]


def start(workdir, cache, *flags, devices=4):
    return subprocess.Popen(
        [sys.executable, "train.py", f"--workdir={workdir}", *FLAGS, *flags],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )


def read_until(process, word):
    """Lines up to the one that holds the word; the process may be gone after it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return "".join(lines)
    raise AssertionError(f"{word!r} never came:\n{''.join(lines)}")


def test_a_run_that_is_terminated_and_then_killed_ends_as_if_it_never_was(
    whole, tmp_path, compilation_cache
):
    workdir = tmp_path / "run"
    first = start(workdir, compilation_cache)
    read_until(first, "epoch 1/2")
    first.send_signal(signal.SIGTERM)
    rest = first.communicate(timeout=500)[0]
    assert first.returncode == 0
    assert "stopped by a signal" in rest
    assert "the same command goes on from here" in rest
    assert not (workdir / "result.json").exists()

    second = start(workdir, compilation_cache)
    read_until(second, "going on from step")
    second.kill()
    second.communicate(timeout=500)
    assert second.returncode == -signal.SIGKILL
    assert not (workdir / "result.json").exists()

    third = start(workdir, compilation_cache)
    output = third.communicate(timeout=500)[0]
    assert third.returncode == 0, output
    assert_same_run(workdir, whole[0])


def test_two_processes_train_what_one_trains(whole, tmp_path, compilation_cache):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    workdir = tmp_path / "run"
    together = ["--num_processes=2", f"--coordinator=localhost:{port}"]
    both = [
        start(workdir, compilation_cache, *together, f"--process_id={i}", devices=2)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    # The sums over devices are made in another order, so the curves are close, not equal.
    for ours, theirs in zip(rows(workdir), rows(whole[0]), strict=True):
        assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    environment = json.loads((workdir / "environment.json").read_text())
    assert (environment["processes"], environment["devices"]) == (2, 4)
    # One of them writes and speaks; the other is silent.
    assert sum("test accuracy" in output for output in outputs) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs POSIX file-size limits")
def test_a_disk_that_fills_during_a_save_is_reported_and_keeps_what_was_there(
    whole, tmp_path, compilation_cache
):
    resource = pytest.importorskip("resource")
    workdir = tmp_path / "run"
    first = start(workdir, compilation_cache)
    read_until(first, "epoch 1/2")
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=500)
    kept = {path.name for path in (workdir / "checkpoints").iterdir()}
    metrics = rows(workdir)
    # A limit on the size of files is what a full disk looks like to a process.
    limit = 40_000
    code = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.argv[0] = 'train.py'\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit
    second = subprocess.run(
        [sys.executable, "-c", code, f"--workdir={workdir}", *FLAGS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"},
    )
    assert second.returncode == 1, second.stdout + second.stderr
    assert "could not be written" in second.stderr
    assert "start the same command again" in second.stderr
    assert kept <= {path.name for path in (workdir / "checkpoints").iterdir()}
    assert rows(workdir)[: len(metrics)] == metrics
    third = start(workdir, compilation_cache)
    assert third.wait(timeout=500) == 0
    assert_same_run(workdir, whole[0])
