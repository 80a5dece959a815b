"""What cannot run is refused before anything is compiled, and nothing on disk is lost."""

import functools
import importlib
import json
import operator
import os
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from fda_jax import data, experiment
from fda_jax.experiment import inherit, lock, run, setup, stages, sweep
from fda_jax.experiment.folder import RunFolder, WorkdirError
from tests.conftest import REPOSITORY, small_config


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    """A refusal that comes after a compilation comes too late."""

    def compiled(*_, **__):
        raise AssertionError("something was compiled before the refusal")

    monkeypatch.setattr(jax, "pmap", compiled)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.epochs": 0}, ["train.epochs is 0", "at least 1"]),
        ({"train.epochs": 3 * 10**9}, ["train.epochs is 3000000000", "2**31", "--config.train."]),
        ({"train.budget": 0.0}, ["train.budget is 0.0", "(0, 1]", "--config.train.budget"]),
        ({"train.budget": 1.5}, ["train.budget is 1.5", "(0, 1]"]),
        ({"train.batch_size": 30}, ["train.batch_size is 30", "4 devices", "28 or 32"]),
        ({"train.batch_size": 2000}, ["train.batch_size is 2000", "1442 training examples"]),
        ({"eval.batch_size": 1}, ["eval.batch_size is 1", "use 4"]),
        ({"train.label_smoothing": 1.0}, ["train.label_smoothing is 1.0", "[0, 1)"]),
        ({"train.ema_decay": -0.5}, ["train.ema_decay is -0.5"]),
        ({"method.omega": 0.0}, ["omega is 0.0", "positive"]),
        ({"method.omega": -1.0}, ["omega is -1.0", "positive"]),
        ({"method.num_terms_start": 0}, ["num_terms is 0", "at least 1"]),
        ({"method.num_terms_end": 5}, ["num_terms_end is 5", "10"]),
        ({"method.num_terms_end": 10**9}, ["num_terms_end is 1000000000", "at most 1000"]),
        ({"method.noise": "sideways"}, ["'sideways'", "forward, backward"]),
        ({"method.noise_shortcut": "cosine"}, ["'cosine'", "none, linear, sine"]),
        ({"method.scale": "channel"}, ["'channel'", "none, layer, filter"]),
        ({"method.name": "fad"}, ["'fad'", "'fda'"]),
        ({"model.name": "resnet2"}, ["'resnet2'", "'resnet20'"]),
        ({"model.dtype": "float8"}, ["'float8'", "float32, bfloat16"]),
        ({"model.real_layers": ("stage9_*",)}, ["'stage9_*'", "they are stage1_block1/conv1,"]),
        ({"model.real_layers": (1,)}, ["model.real_layers is (1,)", "tuple[str, ...]"]),
        ({"data.name": "digit"}, ["'digit'", "digits"]),
        ({"data.name": "cifar10", "data.dir": "no/such"}, ["batches.meta", "no/such", "tar -xzf"]),
        ({"data.name": "folder:no/such"}, ["no/such"]),
        ({"augment.crop_px": -1}, ["augment.crop_px is -1"]),
        ({"augment.crop_px": 9}, ["augment.crop_px is 9", "0..8"]),
        ({"augment.smallest_area": 0.0}, ["augment.smallest_area is 0.0", "(0, 1]"]),
        ({"augment.smallest_area": 8.0}, ["augment.smallest_area is 8.0", "--config.augment.sm"]),
        ({"seed": -1}, ["seed is -1", "2**32 - 1", "--config.seed"]),
        ({"seed": 2**32}, ["seed is 4294967296"]),
        ({"train.steps_per_call": -1}, ["train.steps_per_call is -1", "0 for a number that suits"]),
        ({"data.limit": 5000}, ["data.limit is 5000", "1442", "--config.data.limit=0"]),
        ({"data.num_threads": 10**9}, ["data.num_threads is 1000000000", "1024"]),
        ({"data.image_size": 0}, ["data.image_size is 0", "at least 1 pixel"]),
        (
            {"optimizer.learning_rate": float("inf")},
            ["optimizer.learning_rate is inf", "must be finite"],
        ),
        ({"optimizer.weight_decay": 1e300}, ["optimizer.weight_decay is 1e+300", "float32"]),
        ({"method.noise_shortcut_slope": float("nan")}, ["method.noise_shortcut_slope is nan"]),
        ({"optimizer.warmup_epochs": -0.5}, ["optimizer.warmup_epochs is -0.5", "not be negative"]),
        (
            {"optimizer.schedule": "step", "optimizer.boundary_epochs": (1.0, 2.0)},
            ["optimizer.boundary_epochs is (1.0, 2.0)", "within the 2 epochs"],
        ),
        (
            {"optimizer.schedule": "step", "optimizer.boundary_epochs": (1.0, 0.5)},
            ["optimizer.boundary_epochs is (1.0, 0.5)", "ascending"],
        ),
        (
            {"optimizer.schedule": "step", "optimizer.boundary_epochs": ("a",)},
            ["optimizer.boundary_epochs is ('a',)"],
        ),
        ({"optimizer.boundary_factor": -1.0}, ["optimizer.boundary_factor is -1.0"]),
        ({"optimizer.name": "sdg"}, ["'sdg'", "sgd, adam, adamw"]),
        ({"optimizer.schedule": "cosin"}, ["'cosin'", "cosine"]),
        ({"optimizer.warmup_epochs": 5.0}, ["warmup_epochs", "end before the last"]),
        ({"diagnostics.every_steps": -1}, ["diagnostics.every_steps is -1", "0 is off"]),
        ({"diagnostics.probes": -1}, ["diagnostics.probes is -1", "0 probes nothing"]),
    ],
)
def test_a_value_that_cannot_run_is_named_with_its_limit(tmp_path, changes, words):
    config = small_config(**changes)
    with pytest.raises(experiment.USER_ERRORS) as error:
        experiment.train(config, tmp_path / "run")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [355, 358, 1000])
def test_an_evaluation_batch_that_holds_the_test_set_fits_any_devices(size):
    config = small_config(**{"eval.batch_size": size})
    plan = setup.build(config).plan
    assert (plan.num_test, plan.eval_batch_size) == (355, 356)
    for other, words in ((354, "use 352 or 356"), (size + 0.5, "of type int")):
        config["eval"]["batch_size"] = other
        with pytest.raises(ValueError, match=f"batch_size is {other}, but .*{words}"):
            setup.build(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("augment.flip", "False"),
        ("optimizer.learning_rate", "0.1"),
        ("optimizer.boundary_epochs", None),
        ("optimizer.boundary_epochs", ("a", "b")),
        ("optimizer.decay_groups", "binary"),
        ("data.dir", None),
        ("data.limit", 100.5),
        ("train.epochs", True),
        ("train.teacher", None),
        ("model.name", None),
        ("method.scale_in_gradient", "False"),
        ("stages.stage1.augment.flip", 0),
        ("eval", None),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"train.budget": 0.5}])
def test_a_value_of_another_type_is_refused_by_name(tmp_path, key, value, changes):
    config = small_config(**changes)
    if key.startswith("stages"):
        config["stages"] = {"stage1": {"epochs_share": 0.5, "augment": {}}, "stage2": {}}
        config["train"]["epochs"] = 4
    *groups, leaf = key.split(".")
    functools.reduce(operator.getitem, groups, config)[leaf] = value
    words = re.escape(f"{key.removeprefix('stages.stage1.')} is {value!r}, but must be of type ")
    with pytest.raises(setup.ConfigError, match=words):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_paths_and_whole_numbers_are_values_too():
    config = small_config()
    config["optimizer"] |= {"learning_rate": np.float32(0.5), "boundary_epochs": [np.int64(1)]}
    config["data"]["dir"], config["seed"] = Path("there"), np.int32(3)
    config["method"]["omega"] = 1
    found = setup.typed(config)
    assert found["optimizer"]["learning_rate"] == 0.5
    assert repr(found["optimizer"]["boundary_epochs"]) == "(1.0,)"
    assert json.loads(json.dumps(found))["data"]["dir"] == "there"
    assert setup.build(config).seed == 3


@pytest.mark.parametrize(
    ("group", "key"),
    [
        ("method", "omgea"),
        ("data", "folder"),
        ("model", "depth"),
        ("optimizer", "beta"),
        ("augment", "rotate"),
        ("train", "steps"),
        ("eval", "size"),
        ("checkpoint", "keep"),
        ("diagnostics", "every_epochs"),
    ],
)
def test_an_unknown_key_of_any_group_is_refused_by_name(tmp_path, group, key):
    config = small_config()
    config[group][key] = 1
    with pytest.raises(ValueError, match=key):
        experiment.train(config, tmp_path / "run")


@pytest.mark.parametrize("group", setup.GROUPS)
def test_a_missing_group_or_key_is_refused_by_name(tmp_path, group):
    config = small_config()
    if group not in ("method", "data"):
        gone = sorted(config[group])[0]
        with_gap = {**config, group: {k: v for k, v in config[group].items() if k != gone}}
        with pytest.raises(ValueError, match=gone):
            experiment.train(with_gap, tmp_path / "run")
    del config[group]
    with pytest.raises(ValueError, match=group):
        experiment.train(config, tmp_path / "run")


def test_a_method_argument_that_is_not_one_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'ste'"):
        importlib.import_module("cifar10_resnet20").get_config("st")


def test_labels_outside_the_class_count_are_refused():
    with pytest.raises(data.DataError, match="10"):
        data.check_labels(np.array([0, 10, 3], np.int32), 10, "digits")


def test_a_folder_that_holds_another_run_is_refused_and_left_alone(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(small_config())
    folder.append_metrics({"split": "train", "step": 5})
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(WorkdirError) as error:
        experiment.train(small_config(**{"seed": 3, "method.omega": 0.2}), tmp_path / "run")
    message = str(error.value)
    assert "method.omega was 0.1 and is 0.2" in message
    assert "seed was 0 and is 3" in message
    assert "--workdir" in message
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_another_configuration_of_a_finished_run_is_told_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("first"))
    folder.claim(small_config())
    folder.write("result.json", {"last_test_accuracy": 0.9, "best_test_accuracy": 0.9})
    with pytest.raises(WorkdirError, match="That run is finished") as refused:
        folder.claim(small_config(seed=3))
    # From there a run in any folder finds it.
    given = re.search(r"init_from=(\S+)", str(refused.value))
    assert given
    finished = inherit.FinishedRun("train.init_from", given[1], tmp_path / "elsewhere" / "second")
    assert finished.path == tmp_path / "first"


def test_a_folder_whose_checkpoints_could_not_be_read_is_refused(tmp_path):
    with pytest.raises(experiment.CheckpointError, match=r"has '\[1\]' in it.*--workdir"):
        experiment.train(small_config(), tmp_path / "runs[1]" / "run")
    small = ["data.name=digits", "model.name=tiny", "train.epochs=2", "eval.batch_size=200"]
    asked = sweep.read(REPOSITORY / "configs" / "sweeps" / "table2.py", small)
    with pytest.raises(experiment.CheckpointError, match="--workdir"):
        sweep.train(asked, tmp_path / "runs[1]", only=["fda"])
    assert not any(tmp_path.iterdir())


def test_processes_that_begin_at_one_time_keep_out_of_each_other_s_way(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: RunFolder(tmp_path / "run").make(), range(400)))
    assert not any((tmp_path / "run").iterdir())


def test_a_single_run_does_not_move_into_a_sweep(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write("sweep.json", {})
    with pytest.raises(WorkdirError, match="holds a sweep"):
        folder.claim(small_config())
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_a_folder_that_became_another_run_s_before_it_was_locked_is_refused(tmp_path):
    config, other = small_config(), small_config(seed=3)
    folder = RunFolder(tmp_path)
    folder.claim(config)
    RunFolder(tmp_path).claim(other)
    built = setup.build(config)
    with pytest.raises(WorkdirError, match="seed was 3"), run.begun(config, folder, built):
        pass
    assert folder.read("config.json")["seed"] == 3
    with run.begun(other, folder, built):
        pass


def test_a_run_that_came_to_nothing_makes_room_for_another(tmp_path):
    folder, other = RunFolder(tmp_path), small_config(seed=3)
    folder.claim(small_config())
    folder.write("failure.json", {"step": 0})
    with folder.locked(), pytest.raises(WorkdirError, match="seed was 0 and is 3"):
        RunFolder(tmp_path).claim(other)  # it has only begun
    folder.claim(other)
    assert folder.read("config.json")["seed"] == 3
    assert folder.read("failure.json") is None
    stage = RunFolder(tmp_path / "stage1")
    stage.claim(other)
    folder.claim(small_config())
    assert not stage.path.exists()
    stage.claim(other)
    (stage.path / "a note").write_text("somebody's own")
    folder.claim(other)
    folder.claim(small_config())
    assert [path.name for path in stage.path.iterdir()] == ["a note"]
    stage.claim(other)
    stage.append_metrics({"split": "train", "step": 5})
    with pytest.raises(WorkdirError, match="another configuration"):
        folder.claim(other)


def test_a_stage_that_cannot_start_leaves_the_folder_alone(tmp_path):
    config = importlib.import_module("digits_resnet").get_config("lns").to_dict()
    config["train"]["init_from"] = "nowhere"
    with pytest.raises(setup.ConfigError, match="nowhere"):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_home_is_a_home_for_stages_too():
    config = importlib.import_module("digits_resnet").get_config("lns").to_dict()
    for given, wanted in (("~/base", "~/base"), ("/base", "/base"), ("base", "../base")):
        config["train"]["init_from"] = given
        assert stages.split(config)[0]["train"]["init_from"] == wanted


def test_other_data_of_the_same_name_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    facts = setup.load_data(small_config()).facts()
    folder.claim_data(facts)
    folder.claim_data(facts)
    renamed = {**facts, "classes": ["zero", *facts["classes"][1:]]}
    with pytest.raises(WorkdirError, match=r"classes were \['0'\] and are \['zero'\].*--workdir"):
        folder.claim_data(renamed)
    fewer = {**facts, "training_examples": 1000}
    with pytest.raises(WorkdirError, match="training_examples were 1442 and are 1000"):
        folder.claim_data(fewer)
    folder.claim_data(fewer, ("classes",))  # all that an evaluation needs


def test_a_folder_is_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("fda_jax.experiment.folder.PATIENCE", 0.5)
    folder = RunFolder(tmp_path)
    with folder.locked(), pytest.raises(WorkdirError, match=f"process {os.getpid()} on .*--work"):
        RunFolder(tmp_path).locked().__enter__()
    with RunFolder(tmp_path).locked():  # which the first has left
        pass


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"[1]", r"config\.json cannot be read"),
        (
            "result.json",
            b"{}",
            r"result\.json lacks last_test_accuracy, best_test_accuracy: remove it",
        ),
        ("result.json", b"\xff", r"result\.json cannot be read"),
        ("environment.json", b'"x"', r"environment\.json cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, words):
    folder = RunFolder(tmp_path)
    folder.claim(small_config())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WorkdirError, match=words):
        experiment.train(small_config(), tmp_path)


def test_data_that_moved_are_no_other_configuration(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(small_config())
    free = {"data.dir": "elsewhere", "data.num_threads": 3, "checkpoint.every_epochs": 1}
    folder.claim(small_config(**free))


def test_older_runs_of_streams_were_mirrored_and_go_on_as_such(tmp_path):
    def config(name, flip):
        return small_config(**{"data.name": name, "augment.flip": flip})

    for number, (name, streamed) in enumerate(
        [("folder:x", None), ("folder:x", True), ("tfds:x", True)]
    ):
        folder = RunFolder(tmp_path / str(number))
        older = config(name, False)
        del older["augment"]["smallest_area"]
        folder.claim(older)
        folder.append_metrics({"split": "train", "step": 5})
        folder.claim(config(name, True), streamed=streamed)
        with pytest.raises(WorkdirError, match=r"augment\.flip was True and is False"):
            folder.claim(config(name, False), streamed=streamed)
    folder.claim(config("tfds:x", False), streamed=False)  # in memory it was as it said


def test_a_folder_with_checkpoints_of_nobody_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(WorkdirError, match=r"no config\.json"):
        experiment.train(small_config(), tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkdirError, match="cannot be written"):
        experiment.train(small_config(), tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable to the administrator")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WorkdirError, match="cannot be written"):
        experiment.train(small_config(), tmp_path / "run")


def test_a_damaged_configuration_file_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(WorkdirError, match=r"config\.json cannot be read"):
        experiment.train(small_config(), tmp_path)


def test_evaluating_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(WorkdirError, match="holds no run"):
        experiment.evaluate(None, tmp_path)


def test_evaluation_leaves_a_folder_as_it_is(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim(small_config())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(WorkdirError, match="no checkpoint yet"):
        experiment.evaluate(small_config(seed=3), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_while_a_file_is_replaced_keeps_the_old_one(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write("result.json", {"accuracy": 0.5})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkdirError, match="No space left on device"):
        folder.write("result.json", {"accuracy": 0.6})
    with pytest.raises(WorkdirError, match=r"No space left on device.*checkpoints are untouched"):
        folder.append_metrics({"step": 1})
    assert folder.read("result.json") == {"accuracy": 0.5}
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_is_no_obstacle_to_a_lock(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with lock.held(tmp_path / ".lock", patience=0):
            assert not lock.is_free(tmp_path / ".lock")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lock.is_free(tmp_path / ".lock")


def test_metrics_survive_a_line_cut_short_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    one, two = ({"step": step, "split": "train"} for step in (1, 2))
    folder.append_metrics(one, two)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert folder.metrics() == [one, two]
    folder.forget_after(1)
    assert (tmp_path / "metrics.jsonl").read_text() == f"{json.dumps(one)}\n"
    for damaged in (b'{"step": 1\n', b"\xff\n", b"[1]\n", b'{"split": "train"}\n'):
        (tmp_path / "metrics.jsonl").write_bytes(damaged + b'{"step": 2}\n')
        with pytest.raises(WorkdirError, match=r"line 1 of .*metrics\.jsonl"):
            folder.metrics()
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(WorkdirError, match=r"cannot be read \(Is a directory\): restore"):
        folder.metrics()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config=configs/digits_resnet.py", "--config.train.epoch=3"], ["epoch", "epochs"]),
        (["--config=configs/digits_resnet.py", "--config.train.epochs=many"], ["many"]),
        (["--config=configs/digits_resnet.py:fad"], ["'fad'", "'fda'"]),
        (
            ["--config=configs/digits_resnet.py:irnet", "--config.method.omega=3"],
            ["--config.method.omega=3 overrides nothing", "configs/methods.py"],
        ),
        (["--config=configs/no.py"], ["error: the file of --config", "configs/no.py"]),
        (["--config=configs/no.py", "--config.seed=1"], ["error: the file of --config"]),
        (
            ["--config=configs/digits_resnet.py", "--config.method.name=ste"],
            ["error: --config.method.name=ste: a method is chosen by FILE.py:ste"],
        ),
        (["--config=configs/sweeps/digits.py"], ["--sweep=FILE"]),
        (["--config=configs/digits_resnet.py", "--config.method=ste"], ["FILE.py:METHOD"]),
        (["--config=configs/digits_resnet.py", "--seeds=5"], ["error: --seeds is of a --sweep"]),
        (["--config=configs/digits_resnet.py", "--data_dir=x"], ["--config.data.dir"]),
        (
            ["--config=configs/digits_resnet.py", "--config.train.epochs=2", "--config.train.e=3"],
            ["error: --config.train.e=3 overrides nothing"],
        ),
        (["--config=configs/digits_resnet.py", "extra"], ["extra", "--config.KEY"]),
        (["--config=README.md"], ["error: the file of --config is not Python", "README.md, line"]),
        (["--config=README.md", "--config.seed=1"], ["error: the file of --config is not Python"]),
        ([], ["error: --config is missing"]),
        (["--workdir=", "--mode=eval"], ["error: --workdir is empty"]),
        (["--config=~/nothing.py"], [f"{Path.home()}/nothing.py"]),
        (
            ["--config=configs/digits_resnet.py", "--config.optimizer.decay_groups=binary,reel"],
            ["optimizer.decay_groups is 'reel'"],
        ),
    ],
)
def test_the_command_line_refuses_in_words_and_with_a_failing_exit_code(tmp_path, flags, words):
    done = subprocess.run(
        [sys.executable, "train.py", f"--workdir={tmp_path / 'run'}", *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert all(word in output for word in words), output
    assert len(output.splitlines()) < 4, output
    assert not (tmp_path / "run").exists()
