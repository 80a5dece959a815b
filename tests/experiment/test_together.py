"""Seeds that are trained as one program: each run is the one that it is when trained alone."""

import dataclasses
import json
import os
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from fda_jax import experiment
from fda_jax.data import StreamSplit
from fda_jax.experiment import loop, run, setup, sweep, together
from fda_jax.experiment.loop import Stop
from fda_jax.experiment.setup import ConfigError
from fda_jax.experiment.side_by_side import Job
from fda_jax.training import devices
from fda_jax.training.checkpoints import Checkpoints
from tests.conftest import small_config
from tests.experiment.conftest import arrays, assert_same_run, rows
from tests.experiment.test_sweep import SMALL, write

SEEDS = (0, 1)


def jobs(folder, seeds=SEEDS):
    return [Job(f"seed{k}", small_config(seed=k), folder / f"seed{k}") for k in seeds]


def train(folder, seeds=SEEDS):
    with Stop() as stop:
        return together.train(jobs(folder, seeds), stop=stop, say=print)


def after_step(monkeypatch, step, act):
    """Let `act` do something to a company after its call that begins at this step."""
    advance = together._Company._advance

    def advance_and_act(self, call, item, **words):
        advance(self, call, item, **words)
        if call.step == step:
            act(self)

    monkeypatch.setattr(together._Company, "_advance", advance_and_act)


def ask_to_stop(_):
    os.kill(os.getpid(), signal.SIGTERM)


def names(folder):
    """What lies in a run's folder, and its checkpoints; event files without time and host."""
    found = [*folder.iterdir(), *(folder / "checkpoints").glob("*/*")]
    return sorted(str(path.relative_to(folder)).partition(".tfevents")[0] for path in found)


def assert_close(folder, other):
    """One program sums in another order than the other."""
    chex.assert_trees_all_close(arrays(folder)[0], arrays(other)[0], rtol=1e-3, atol=1e-4)
    for row, its in zip(rows(folder), rows(other), strict=True):
        assert row.pop("split") == its.pop("split")
        assert row == pytest.approx(its, rel=1e-4, abs=2e-3)


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    """The folder of runs that were trained together, and never stopped."""
    folder = tmp_path_factory.mktemp("company")
    assert train(folder) == {}
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of such runs which a signal stopped inside an epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        after_step(patch, 6, ask_to_stop)
        assert train(folder) == {}
    return folder


@pytest.mark.slow
def test_each_run_leaves_what_it_leaves_alone(company, whole, tmp_path):
    experiment.train(small_config(seed=1), tmp_path / "alone")
    for folder, other in ((company / "seed0", whole[0]), (company / "seed1", tmp_path / "alone")):
        assert names(folder) == names(other)
        assert_close(folder, other)
        config, its = (json.loads((f / "config.json").read_text()) for f in (folder, other))
        assert config == its
        result, its = (json.loads((f / "result.json").read_text()) for f in (folder, other))
        assert (result["together"], its["together"]) == (2, 1)
        assert result["seed"] == its["seed"]
        assert result.keys() == its.keys()
        assert result["last_test_loss"] == pytest.approx(its["last_test_loss"], rel=1e-4)
    assert rows(company / "seed0") != rows(company / "seed1")


@pytest.mark.slow
def test_runs_share_the_time_of_their_program(company):
    results = [json.loads((company / f"seed{k}" / "result.json").read_text()) for k in SEEDS]
    assert len({result["seconds"] for result in results}) == 1
    first = results[0]
    # The first call, of one step, compiles; the other nine steps are what `seconds` holds.
    assert (first["seconds"] > 0, first["steps"], first["timed_steps"]) == (True, 10, 9)
    assert first["images_per_second"] == pytest.approx(9 * 320 / first["seconds"])


@pytest.mark.slow
def test_runs_stopped_by_a_signal_inside_an_epoch_end_as_if_they_never_were(
    company, stopped, tmp_path, capsys
):
    shutil.copytree(stopped, tmp_path / "w")
    assert not list(stopped.glob("seed*/result.json"))
    assert train(tmp_path / "w") == {}
    output = capsys.readouterr().out
    assert all(f"[seed{k}] going on from step 7 of 10" in output for k in SEEDS)
    for k in SEEDS:
        assert_same_run(tmp_path / "w" / f"seed{k}", company / f"seed{k}")


@pytest.mark.slow
def test_a_run_that_was_trained_together_goes_on_alone(company, stopped, tmp_path, capsys):
    shutil.copytree(stopped / "seed1", tmp_path / "run")
    experiment.train(small_config(seed=1), tmp_path / "run")
    assert "going on from step 7 of 10" in capsys.readouterr().out
    assert_close(tmp_path / "run", company / "seed1")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["together"] == 2  # for a part of its time is a share
    answers = experiment.evaluate(None, company / "seed0")
    assert answers["last"]["accuracy"] == rows(company / "seed0")[-1]["accuracy"]


@pytest.mark.slow
def test_runs_that_were_trained_alone_go_on_together(company, tmp_path, monkeypatch, capsys):
    advance = loop.Trainer._advance

    def advance_and_stop(self, progress, call, item):
        seconds = advance(self, progress, call, item)
        if call.step == 6:
            ask_to_stop(self)
        return seconds

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_advance", advance_and_stop)
        for job in jobs(tmp_path):
            assert experiment.train(job.config, job.workdir) is None
    capsys.readouterr()
    assert train(tmp_path) == {}
    assert "[seed1] going on from step 7 of 10" in capsys.readouterr().out
    for k in SEEDS:
        assert_close(tmp_path / f"seed{k}", company / f"seed{k}")


@pytest.mark.slow
def test_a_run_that_moved_on_before_it_was_locked_is_no_companion(company, stopped, tmp_path):
    shutil.copytree(stopped / "seed0", tmp_path / "seed0")  # step 7; seed1 has not begun
    with Stop() as stop:
        failures = together._lockstep(jobs(tmp_path), stop)
    assert list(failures) == ["seed1"]
    assert "seed1 stands at step 0 and" in str(failures["seed1"])
    assert not (tmp_path / "seed1" / "metrics.jsonl").exists()
    assert_close(tmp_path / "seed0", company / "seed0")
    assert train(tmp_path) == {}
    assert_close(tmp_path / "seed1", company / "seed1")


def poison(tree, place):
    """A stacked state, one run of which has a weight that is not finite."""

    def spoil(leaf):
        leaf = np.array(leaf)
        leaf[place] = np.nan
        return leaf

    tree = jax.device_get(tree)
    params = {**tree.params, "stem": jax.tree.map(spoil, tree.params["stem"])}
    return devices.replicate(tree.replace(params=params))


@pytest.mark.slow
def test_a_run_that_is_not_finite_fails_as_alone_and_the_others_never_notice(
    company, tmp_path, monkeypatch
):
    def spoil(self):
        self._state = poison(self._state, 1)

    with monkeypatch.context() as patch:
        after_step(patch, 6, spoil)
        failures = train(tmp_path / "w")
    assert list(failures) == ["seed1"]
    assert isinstance(failures["seed1"], experiment.NonFiniteError)
    assert_same_run(tmp_path / "w" / "seed0", company / "seed0")
    assert not (tmp_path / "w" / "seed1" / "result.json").exists()

    advance = loop.Trainer._advance

    def advance_and_spoil(self, progress, call, item):
        seconds = advance(self, progress, call, item)
        if call.step == 6:
            stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], progress.state)
            progress.state = jax.tree.map(lambda leaf: leaf[0], poison(stacked, 0))
        return seconds

    monkeypatch.setattr(loop.Trainer, "_advance", advance_and_spoil)
    with pytest.raises(experiment.NonFiniteError) as error:
        experiment.train(small_config(seed=1), tmp_path / "alone")
    assert str(failures["seed1"]) == str(error.value)
    failure, its = (tmp_path / name / "failure.json" for name in ("w/seed1", "alone"))
    assert failure.read_text() == its.read_text()


@pytest.mark.slow
def test_runs_that_all_fail_end_with_a_failure_each(company, tmp_path, monkeypatch):
    def spoil(self):
        for place in range(len(SEEDS)):
            self._state = poison(self._state, place)

    after_step(monkeypatch, 6, spoil)
    failures = train(tmp_path)
    assert sorted(failures) == [f"seed{k}" for k in SEEDS]
    assert all("step 8" in str(error) for error in failures.values())


@pytest.mark.slow
def test_runs_killed_between_their_checkpoints_go_on_from_several_steps(
    company, tmp_path, monkeypatch, capsys
):
    class Killed(BaseException):
        """Stands for kill -9: nothing in the program catches it."""

    save, calls = Checkpoints.save, []

    def deadly(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:  # the last run's of the last epoch
            raise Killed
        save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", deadly)
        with pytest.raises(Killed):
            train(tmp_path, range(3))
    assert train(tmp_path, range(3)) == {}
    output = capsys.readouterr().out
    assert "going on from step 5 of 10" in output
    assert "[seed1] going on from step 10 of 10" in output
    for k in SEEDS:
        assert_close(tmp_path / f"seed{k}", company / f"seed{k}")
    assert rows(tmp_path / "seed2")[-1]["step"] == 10
    assert (tmp_path / "seed2" / "result.json").exists()


@pytest.fixture
def programs(monkeypatch):
    """Folders of the runs of each program, in order; none is trained."""
    found = []

    def lockstep(jobs, stop):
        found.append([f"{job.workdir.parent.name}/{job.workdir.name}" for job in jobs])
        return {}

    def alone(config, workdir, *, stop):
        found.append([f"{workdir.parent.name}/{workdir.name}"])

    monkeypatch.setattr(together, "_lockstep", lockstep)
    monkeypatch.setattr(run, "train", alone)
    return found


def test_runs_at_one_step_are_a_program_and_finished_ones_are_none(tmp_path, programs):
    folder = tmp_path / "a"
    for k, step in ((1, 5), (2, 10), (3, 5), (4, 10), (5, 5)):
        (folder / f"seed{k}" / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "seed5" / "result.json").write_text("{}")
    train(folder, range(6))
    assert programs == [["a/seed5"], ["a/seed0"], ["a/seed1", "a/seed3"], ["a/seed2", "a/seed4"]]


def test_what_does_not_fit_into_memory_is_halved_until_it_does(tmp_path, programs, monkeypatch):
    lockstep, asked = together._lockstep, []

    def two_at_most(jobs, stop):
        asked.append(len(jobs))
        if len(jobs) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return lockstep(jobs, stop)

    monkeypatch.setattr(together, "_lockstep", two_at_most)
    assert train(tmp_path / "a", range(5)) == {}
    assert asked == [5, 2, 3, 2]
    assert programs == [["a/seed0", "a/seed1"], ["a/seed2"], ["a/seed3", "a/seed4"]]


def test_a_fault_of_the_program_is_every_runs(tmp_path, programs, monkeypatch):
    def broken(jobs, stop):
        raise TypeError("a fault of the program")

    monkeypatch.setattr(together, "_lockstep", broken)
    assert set(train(tmp_path)) == {f"seed{k}" for k in SEEDS}


LOOKED_AT = {"diagnostics.every_steps": 4}
SEEDS_OF_ALL = [["a/seed0"], ["b/seed0"], ["a/seed1"], ["b/seed1"]]


@pytest.mark.parametrize(
    ("choice", "pays", "expected"),
    [
        ("auto", True, [["a/seed0", "a/seed1"], ["b/seed0"], ["b/seed1"]]),
        ("auto", False, SEEDS_OF_ALL),
        ("never", True, SEEDS_OF_ALL),
    ],
)
def test_seeds_of_a_run_are_a_program_where_it_pays_and_can_be(
    tmp_path, programs, monkeypatch, choice, pays, expected
):
    monkeypatch.setattr(sweep, "pays", lambda: pays)
    asked = sweep.read(write(tmp_path, {"a": {}, "b": LOOKED_AT}), SMALL)
    assert sweep.train(asked, tmp_path / "w", seeds=2, together=choice) == {}
    assert programs == expected


def test_on_a_cpu_it_does_not_pay():
    assert not together.pays()


@pytest.mark.parametrize(
    ("own", "arguments", "words"),
    [
        (LOOKED_AT, {}, "run 'a': together is 'always', but diagnostics.every_steps is 4"),
        ({"method": "biper"}, {}, "the run has 2 stages.*--together=auto"),
        ({}, {"environments": [{}, {}]}, "2 devices train a run each.*--noside_by_side"),
        ({}, {"together": "sometimes"}, "'sometimes'.*auto, always, never"),
    ],
)
def test_what_cannot_be_trained_together_is_refused_before_anything_starts(
    tmp_path, programs, own, arguments, words
):
    asked = sweep.read(write(tmp_path, {"a": own}), SMALL)
    with pytest.raises(ConfigError, match=words):
        sweep.train(asked, tmp_path / "w", seeds=2, **{"together": "always", **arguments})
    assert not programs
    assert not (tmp_path / "w").exists()


def test_what_is_asked_for_is_trained_together_beside_runs_that_cannot_be(tmp_path, programs):
    asked = sweep.read(write(tmp_path, {"a": {}, "b": {"method": "biper"}}), SMALL)
    assert sweep.train(asked, tmp_path / "w", seeds=2, only=["a"], together="always") == {}
    assert programs == [["a/seed0", "a/seed1"]]


def test_streams_and_several_processes_are_trained_alone(monkeypatch):
    built = setup.build(small_config())
    assert together.obstacle([built]) == ""
    train = StreamSplit(source=built.dataset.train, image_size=8, num_threads=0)
    streamed = dataclasses.replace(built.dataset, train=train)
    why = together.obstacle([dataclasses.replace(built, dataset=streamed)])
    assert why.startswith("digits is a stream of images")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert together.obstacle([built]).startswith("2 processes share each run")


def test_a_failed_run_is_said_once_and_by_its_name(tmp_path, monkeypatch, capsys):
    def broken(jobs, stop):
        return {"a/seed1": experiment.NonFiniteError("the loss of step 3 is not finite")}

    monkeypatch.setattr(together, "_lockstep", broken)
    asked = sweep.read(write(tmp_path, {"a": {}}), SMALL)
    failures = sweep.train(asked, tmp_path / "w", seeds=3, together="always")
    assert failures == {"a/seed1": "NonFiniteError: the loss of step 3 is not finite"}
    said = capsys.readouterr()
    assert "runs 1 to 3/3: a/seed0, a/seed1, a/seed2" in said.out
    assert said.out.count("run a/seed1 failed: ") == 1
    assert "Traceback" not in said.err
