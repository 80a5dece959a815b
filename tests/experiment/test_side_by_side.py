"""Runs side by side: shared out, and none pays for the fate of another."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fda_jax.experiment import side_by_side, sweep, worker
from fda_jax.experiment.loop import Stop
from fda_jax.experiment.side_by_side import Job
from tests.conftest import REPOSITORY
from tests.experiment.conftest import rows

# Stands for a worker, without JAX: what it does is its job's configuration.
WORKER = """
import json, os, signal, sys, time
order = json.loads(sys.stdin.readline())
open(order["workdir"], "w").write(json.dumps([os.environ["PLACE"], order["argv"]]))
def save(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
what = order["config"]["does"]
if what == "forgets":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
print("began", flush=True)
if what in ("waits", "forgets"):
    time.sleep(60)
if what == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "fails":
    print("run failed: ConfigError: no", flush=True)
    print("RuntimeError: Event loop is closed", file=sys.stderr)
    sys.exit(1)
print("done")
"""
PLACES = [{"PLACE": "0"}, {"PLACE": "1"}]


@pytest.fixture
def said(monkeypatch):
    """Lines that the terminal would show."""
    monkeypatch.setattr(side_by_side, "COMMAND", (sys.executable, "-c", WORKER))
    return []


def jobs(folder, *does):
    return [Job(f"j{i}", {"does": what}, folder / f"j{i}") for i, what in enumerate(does)]


def test_jobs_are_shared_out_and_a_failure_or_a_kill_costs_one_alone(tmp_path, said):
    asked = jobs(tmp_path, "works", "fails", "dies", "works", "works")
    failures = side_by_side.train(asked, PLACES, stop=Stop(), say=said.append)
    assert failures == {
        "j1": "ConfigError: no",
        "j2": "its process was ended by SIGKILL",
    }
    assert [f"[j{i}] done" in said for i in range(5)] == [True, False, False, True, True]
    started = [json.loads((tmp_path / f"j{i}").read_text()) for i in range(5)]
    assert {place for place, _ in started} == {"0", "1"}
    assert all(argv == sys.argv for _, argv in started)
    assert "run 5/5: j4 on device" in "\n".join(said)


def test_at_a_signal_every_process_that_can_saves_and_no_other_starts(tmp_path, said):
    asked = jobs(tmp_path, "waits", "forgets", "works")
    stop = Stop()

    def ask_when_both_have_begun():
        while sum(line.endswith("began") for line in list(said)) < 2:
            time.sleep(0.02)
        stop.asked = True

    thread = threading.Thread(target=ask_when_both_have_begun)
    thread.start()
    assert side_by_side.train(asked, PLACES, stop=stop, say=said.append) == {}
    thread.join()
    assert "[j0] saved" in said
    assert "run j1 was ended by the signal before it could save" in "\n".join(said)
    assert "run j0 was ended" not in "\n".join(said)
    assert not (tmp_path / "j2").exists()


@pytest.mark.parametrize("error", [ValueError("no --config.a"), RuntimeError("no --config.a\nb")])
def test_a_worker_says_why_its_run_failed(tmp_path, monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    order = {"argv": sys.argv, "config": {}, "workdir": str(tmp_path)}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(order)))
    monkeypatch.setattr(worker.run, "train", fail)
    for name in ("_stop_when_unwanted", "compilation.keep_programs", "heap.reuse_pages"):
        monkeypatch.setattr(f"fda_jax.experiment.worker.{name}", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    assert worker.main() == 1
    signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr()
    assert f"{side_by_side.WHY}{type(error).__name__}: no --override=a" in said.out.splitlines()
    assert ("Traceback" in said.err) == isinstance(error, RuntimeError)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_of_one_second_ask_to_stop_and_a_later_one_ends_the_process(number, monkeypatch):
    ended, now = [], [0.0]
    monkeypatch.setattr("fda_jax.experiment.loop.time.monotonic", lambda: now[0])
    before = {
        number: signal.signal(number, lambda number, _: ended.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        with Stop() as stop:
            for now[0] in (10.0, 10.9):
                for each in before:
                    os.kill(os.getpid(), each)
            assert (stop.asked, ended) == (True, [])
            now[0] = 11.1
            os.kill(os.getpid(), number)
            assert ended == [number]
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [number, signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_devices_are_counted_in_another_process_and_one_is_not_shared_out(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert side_by_side.pins() == []
    flags = "--xla_a=1 --xla_force_host_platform_device_count=8"
    assert side_by_side._without_simulated(flags) == "--xla_a=1"


SMALL = [
    "--override=model.name=resnet_digits",
    "--override=data.name=digits",
    "--override=train.epochs=2",
    "--override=train.batch_size=320",
    "--override=eval.batch_size=200",
]
NAMES = ("dorefa", "fda_noise=none")


def start(workdir, *flags):
    """Two runs of one sweep on two simulated devices."""
    command = [
        *(sys.executable, "train.py", "--sweep=configs/sweeps/table2.py"),
        *(f"--only={','.join(NAMES)}", f"--workdir={workdir}", *SMALL, *flags),
    ]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
    )


@pytest.mark.slow
def test_two_devices_train_two_runs_whatever_is_killed_on_the_way(tmp_path):
    workdir = tmp_path / "w"
    first = start(workdir)
    for line in first.stdout:
        if "epoch 1/2" in line:
            break
    first.kill()  # its workers are left alone, and must end by themselves
    first.communicate(timeout=300)
    second = start(workdir)
    output = second.communicate(timeout=300)[0]
    assert second.returncode == 0, output
    assert "on device 1" in output
    assert "1 cpu device(s)" in output
    assert "going on from step" in output
    overrides = [word.removeprefix("--override=") for word in SMALL]
    asked = sweep.read(REPOSITORY / "configs" / "sweeps" / "table2.py", overrides)
    for name in NAMES:
        folder = workdir / name / "seed0"
        result = json.loads((folder / "result.json").read_text())
        assert result["config"]["method"] == asked.configs[name]["method"]
        assert result["devices"] == 1
        # The command of the sweep, not of a worker.
        recorded = json.loads((folder / "environment.json").read_text())["command"]
        assert recorded[0] == "train.py"
        assert len(rows(folder)) == 4
        assert asked.configs[name]["train"]["epochs"] == result["epochs"]


@pytest.mark.slow
def test_a_signal_to_the_whole_group_lets_every_run_save(tmp_path):
    process = start(tmp_path / "w", "--override=train.epochs=5000")
    training = set()
    for line in process.stdout:
        training |= {line.split("]")[0]} if "images/s" in line else set()
        if len(training) == 2:
            break
    for _ in range(3):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.1)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert output.count("checkpoint saved: the same command goes on from here") == 2
    assert "before it could save" not in output
