"""How the GPU's benchmark shares its card and its time, with sides that only pretend to work."""

import argparse
import json
import threading
import time
from pathlib import Path

import pytest
import throughput_gpu

OURS = throughput_gpu.OURS


class Pretended:
    """A side that is ready at once and writes down what it does."""

    def __init__(self, name, task, log):
        self.facts = {"check_loss": 2.0, "flops_per_step": 1e9, "start_seconds": 0.0}
        self._name, self._task, self._log = name, task, log

    def turn(self):
        self._log.append(("turn", self._name, self._task.batch, self._task.dtype))
        speed = 3000.0 if self._name == OURS else 1000.0
        return {"seconds": 0.1, "steps": 10, "images_per_second": speed, "evaluation_seconds": 1.0}

    def close(self):
        self._log.append(("close", self._name, self._task.batch, self._task.dtype))


@pytest.fixture
def log(monkeypatch):
    """What the sides do, one after another."""
    log = []

    def start(name, task, end, args):
        log.append(("start", name, task.batch, task.dtype))
        return Pretended(name, task, log)

    monkeypatch.setattr(throughput_gpu, "start", start)
    monkeypatch.setattr(throughput_gpu, "save_variables", lambda task, folder: None)
    monkeypatch.setattr(throughput_gpu, "matmul_tflops", lambda size: 400.0)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    return log


def run(monkeypatch, folder, *flags):
    """The record of the benchmark with these flags."""
    monkeypatch.setattr("sys.argv", ["throughput_gpu.py", f"--out={folder}", *flags])
    throughput_gpu.main()
    return json.loads((folder / "throughput_gpu.json").read_text())


def test_every_part_is_measured_and_the_sides_of_a_group_start_together(log, monkeypatch, tmp_path):
    record = run(monkeypatch, tmp_path, "--at-once=2", "--rounds=2", "--company", "0", "0")
    assert [row[0] for row in record["tables"][0]["rows"]] == [
        "resnet20, batch 128, bfloat16",
        "resnet20, batch 1024, bfloat16",
        "resnet20, batch 128, float32",
        "resnet18, batch 256, bfloat16",
        "resnet20, batch 1024, float32",
    ]
    assert {row[4] for row in record["tables"][0]["rows"]} == {3.0}
    assert [row[0] for row in record["tables"][1]["rows"]] == [
        "1",
        "2",
        "3",
        "5",
        "1, a graph a step",
        "5, a graph a step",
        "1, a graph a step, kernels side by side",
        "5, a graph a step, kernels side by side",
    ]
    starts = [i for i, (what, *_) in enumerate(log) if what == "start"]
    first_turn = next(i for i, (what, *_) in enumerate(log) if what == "turn")
    # The sides of two parts. The first has three numbers of seeds beside ours and the peer, and two
    # sides for each of two forms in which a step is one graph.
    assert sum(i < first_turn for i in starts) == (2 + 3 + 2 * 2) + 2
    assert sum(what == "turn" for what, *_ in log) == 2 * len(starts)
    assert sum(what == "close" for what, *_ in log) == len(starts)


def test_no_turn_is_taken_before_the_card_is_free_and_the_file_goes_with_the_last(
    log, monkeypatch, tmp_path
):
    free = tmp_path / "free"
    before = []

    def let_go():
        for turns in (0, 2):  # so many before the file of this group appears
            while sum(what == "start" for what, *_ in log) < turns + 2 or free.exists():
                time.sleep(0.01)
            time.sleep(0.5)
            before.append(sum(what == "turn" for what, *_ in log))
            free.touch()

    thread = threading.Thread(target=let_go, daemon=True)
    thread.start()
    parts = ["--parts", "f32_128", "f32_1024"]
    run(monkeypatch, tmp_path, f"--hold={free}", "--rounds=1", *parts)
    thread.join()
    assert before == [0, 2]
    assert not free.exists()


def test_a_part_that_the_time_does_not_allow_is_left_out_and_named(log, monkeypatch, tmp_path):
    begin = time.monotonic()
    # As if each look at the clock took half a minute.
    clock = (begin + 30.0 * i for i in range(1_000_000))
    monkeypatch.setattr(throughput_gpu.time, "monotonic", lambda: next(clock))
    parts = ["--parts", "f32_128", "f32_1024"]
    record = run(monkeypatch, tmp_path, "--seconds=150", "--rounds=1", *parts)
    assert set(record["details"]["left_out"]) == {"f32_1024"}
    assert "of the 150 seconds were left" in record["details"]["left_out"]["f32_1024"]
    assert record["details"]["f32_128"][OURS]["turns"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seconds=20", "--seconds=20: 20 are left; give a part 45 at least"),
        ("--at-once=0", "--at-once=0: a group has one part at least"),
    ],
)
def test_what_cannot_be_measured_is_refused(flag, message, log, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, flag)
    assert message in capsys.readouterr().err
    assert not log


@pytest.mark.parametrize(
    ("at_once", "share"), [(1, {}), (2, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.1"})]
)
def test_a_side_of_ours_gets_its_options_and_a_share_of_a_card_that_holds_several_parts(
    at_once, share, monkeypatch
):
    given = {}

    class Process:
        def __init__(self, command, environment, *, wait):
            self.facts = {"start_seconds": 0.0}
            given[Path(command[-2]).stem] = environment

        def wait(self):
            pass

    monkeypatch.setattr(throughput_gpu.sides, "Side", Process)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    args = argparse.Namespace(torch_python="python", at_once=at_once)
    task = throughput_gpu.Task("resnet20", 1024, "float32", 32, 10, 1, 1.0, xla_flags="--more")
    for name in (OURS, "torch default"):
        throughput_gpu.start(name, task, time.monotonic() + 100.0, args)
    assert given == {
        "jax_call": {"XLA_FLAGS": "--xla_dump_to=x --more", **share},
        "torch_gpu": None,
    }
