"""Runs as processes of their own: killed, stopped by a signal, and two that train together."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from fda_jax import experiment
from fda_jax.experiment import lock
from tests.conftest import REPOSITORY, small_config
from tests.experiment.conftest import assert_same_run, rows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]

# Long enough to be stopped in, where every epoch takes a moment.
EPOCHS = 8
NETWORK = "tests.nets:tiny"
FLAGS = [
    "--config=configs/digits_resnet.py:ste",
    f"--config.model.name={NETWORK}",
    "--config.train.batch_size=320",
    "--config.eval.batch_size=200",
    "--config.optimizer.learning_rate=0.02",
]


# train.py under a limit on the size of files, which is what a full disk looks like to a process.
SMALL_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def config_of(epochs):
    """What these flags say."""
    method = importlib.import_module("digits_resnet").get_config("ste").method.to_dict()
    small = small_config(**{"model.name": NETWORK, "train.epochs": epochs})
    return {**small, "method": method}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, optimized):
    """The run of these flags, never stopped: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, experiment.train(config_of(EPOCHS), folder)


def start(workdir, *flags, epochs=EPOCHS, devices=4, program=("train.py",)):
    length = f"--config.train.epochs={epochs}"
    return subprocess.Popen(
        [sys.executable, *program, f"--workdir={workdir}", *FLAGS, length, *flags],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "false",
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


def test_a_run_terminated_then_out_of_disk_then_killed_ends_as_if_it_never_was(whole, tmp_path):
    workdir = tmp_path / "run"
    first = start(workdir)
    read_until(first, f"epoch 1/{EPOCHS}")
    first.send_signal(signal.SIGTERM)
    rest = first.communicate(timeout=500)[0]
    assert first.returncode == 0
    assert "stopped by a signal" in rest
    assert "the same command goes on from here" in rest
    assert not (workdir / "result.json").exists()

    kept = {path.name for path in (workdir / "checkpoints").iterdir()}
    metrics = rows(workdir)
    second = start(workdir, program=("-c", SMALL_DISK))
    output = second.communicate(timeout=500)[0]
    assert second.returncode == 1, output
    assert "could not be written" in output
    assert "start the same command again" in output
    assert kept <= {path.name for path in (workdir / "checkpoints").iterdir()}
    assert rows(workdir)[: len(metrics)] == metrics

    third = start(workdir)
    read_until(third, "going on from step")
    third.kill()
    third.communicate(timeout=500)
    assert third.returncode == -signal.SIGKILL
    assert not (workdir / "result.json").exists()

    fourth = start(workdir)
    output = fourth.communicate(timeout=500)[0]
    assert fourth.returncode == 0, output
    assert_same_run(workdir, whole[0])


def test_a_run_is_evaluated_on_any_number_of_devices_wherever_its_data_lie_now(whole):
    command = [sys.executable, "train.py", f"--workdir={whole[0]}", "--mode=eval"]
    done = subprocess.run(
        [*command, "--data_dir=elsewhere"],  # the digits need none
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"},
    )
    assert done.returncode == 0, done.stderr
    assert f"accuracy {whole[1]['last_test_accuracy']:.2%}" in done.stdout


def test_a_method_of_ones_own_is_found_in_the_current_folder_and_missed_in_words(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from fda_jax import layers\n\n\ndef half(*, window: float = 0.5) -> layers.Method:\n"
        "    return layers.make_method('ste', window=window)\n"
    )
    configs = REPOSITORY / "configs" / "digits_resnet.py"
    train = [str(REPOSITORY / "train.py"), "--workdir=run"]
    mine = [*train, f"--config={configs}:mine:half", "--config.method.window=0.8"]
    mine += [f"--config.model.name={NETWORK}", "--config.train.epochs=1"]
    for words, code, expected in (
        ([*train, f"--config={configs}:yours:half"], 1, "error: there is no module 'yours'"),
        ([*mine, "--config.method.windw=1"], 1, "Did you mean"),
        (mine, 0, "test accuracy"),
        (["-m", "fda_jax.summary", "run"], 0, "| BinaryConv |"),
    ):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)},
        )
        output = done.stdout + done.stderr
        assert (done.returncode, expected in output) == (code, True), output
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["method"]
    assert recorded == {"name": "mine:half", "window": 0.8}


def test_a_second_process_in_the_same_folder_waits_and_is_refused(tmp_path):
    workdir = tmp_path / "run"
    first = start(workdir, epochs=20_000)
    read_until(first, " 1/20000 ")
    first.send_signal(signal.SIGSTOP)  # it keeps the folder, and leaves the cores to the second
    second = start(workdir, epochs=20_000)
    output = second.communicate(timeout=300)[0]
    assert second.returncode == 1
    assert f"another process trains in {workdir} (process {first.pid} on" in output
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=300)
    keys = [(row["step"], row["split"]) for row in rows(workdir)]
    assert len(keys) == len(set(keys)) > 0


def test_a_folder_that_one_process_cannot_have_is_refused_to_all(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    workdir = tmp_path / "run"
    workdir.mkdir()
    together = ["--num_processes=2", f"--coordinator=localhost:{port}"]
    with lock.held(workdir / ".lock", patience=0):
        both = [start(workdir, *together, f"--process_id={i}", devices=2) for i in range(2)]
        outputs = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [1, 1], outputs
    assert f"another process trains in {workdir}" in outputs[0]
    assert "refused, as the first process says" in outputs[1]


def test_two_processes_train_what_one_trains(tmp_path):
    # Later a sign flips in one and not in the other.
    experiment.train(config_of(2), tmp_path / "one")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    workdir = tmp_path / "run"
    together = ["--num_processes=2", f"--coordinator=localhost:{port}"]
    both = [start(workdir, *together, f"--process_id={i}", epochs=2, devices=2) for i in range(2)]
    outputs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    # The sums over devices are made in another order, so the curves are close, not equal.
    for ours, theirs in zip(rows(workdir), rows(tmp_path / "one"), strict=True):
        assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    environment = json.loads((workdir / "environment.json").read_text())
    assert (environment["processes"], environment["devices"]) == (2, 4)
    # One of them writes and speaks; the other is silent.
    assert sum("test accuracy" in output for output in outputs) == 1
