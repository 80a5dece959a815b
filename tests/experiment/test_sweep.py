"""Sweeps: what a file asks for is what is trained, whatever happens on the way."""

import ast
import functools
import importlib
import json
import os
import signal
import subprocess
import sys

import pytest

from fda_jax import experiment, report
from fda_jax.experiment import inherit, loop, run, sweep
from fda_jax.experiment.folder import RunFolder, WorkdirError
from fda_jax.experiment.idle import idle
from fda_jax.experiment.setup import ConfigError
from tests.conftest import REPOSITORY
from tests.experiment.conftest import rows

FILES = sorted((REPOSITORY / "configs" / "sweeps").glob("*.py"))
# Two of four epochs of the digits in five steps each, on a network that is quickly compiled.
SMALL = [
    "model.name=tiny",
    "train.epochs=4",
    "train.budget=0.5",
    "train.batch_size=320",
    "eval.batch_size=200",
    "optimizer.learning_rate=0.5",
    "optimizer.schedule=constant",
]


@pytest.fixture(scope="module", autouse=True)
def networks_are_traced_once():
    """However many runs have the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inherit, "variable_shapes", functools.cache(inherit.variable_shapes))
        yield


@pytest.fixture
def trained(monkeypatch):
    """Folders and configurations in the order in which they would be trained, but are not."""
    calls = []

    def train(config, workdir, *, stop):
        calls.append((workdir, config))
        return {}

    monkeypatch.setattr(run, "train", train)
    return calls


def write(folder, runs, *, name="small", base="get_config", question="Which is it?"):
    """A sweep file over the digits; `runs` is what its function returns."""
    path = folder / f"{name}.py"
    path.write_text(
        f'"""{question}\n\nMore.\n"""\n\nfrom digits_resnet import get_config\n\n\n'
        f"def get_sweep():\n    return {base}, {runs!r}\n"
    )
    return path


def test_a_run_is_the_base_with_its_overrides_typed_as_the_defaults(tmp_path):
    own = {"method.window": 2, "method": "ste", "optimizer.boundary_epochs": [1, 2.5]}
    shared = ["train.epochs=7", "augment.flip=true", "data.dir=3", "optimizer.clip_norm=inf"]
    shared += ["optimizer.decay_groups=('norm',)"]
    found = sweep.read(write(tmp_path, [own, {}]), shared)
    assert found.question == "Which is it?"
    assert list(found.configs) == ["ste_window=2_optimizer.boundary_epochs=-1--2.5-", "base"]
    expected = importlib.import_module("digits_resnet").get_config("ste")
    expected.method.window = 2.0
    expected.optimizer.boundary_epochs = (1, 2.5)
    expected.optimizer.decay_groups = ("norm",)
    expected.optimizer.clip_norm = float("inf")
    expected.train.epochs = 7
    expected.augment.flip = True
    expected.data.dir = "3"
    assert found.configs[next(iter(found.configs))] == expected.to_dict()
    assert found.configs["base"]["method"]["name"] == "fda"


def test_an_override_says_what_it_says_on_the_command_line_of_a_run(tmp_path):
    path = write(tmp_path, [{}])
    for word, value in (
        ("optimizer.boundary_epochs=10", (10,)),
        ("optimizer.boundary_epochs=10,20.5", (10, 20.5)),
        ("model.real_layers=stage3_*,*/conv1", ("stage3_*", "*/conv1")),
        ("augment.flip=0", False),
        ("augment.flip=1", True),
    ):
        (config,) = sweep.read(path, [word]).configs.values()
        group, key = word.partition("=")[0].split(".")
        assert config[group][key] == value
        assert type(config[group][key]) is type(value)


def test_a_base_is_also_named_by_its_file_and_method(tmp_path):
    path = write(tmp_path, {"a": {}, "b": {"method": "bireal"}}, base="'digits_resnet:ste'")
    methods = {name: config["method"] for name, config in sweep.read(path).configs.items()}
    assert methods == {
        "a": importlib.import_module("methods").method("ste").to_dict(),
        "b": importlib.import_module("methods").method("bireal").to_dict(),
    }


@pytest.mark.parametrize("place", ["beside", "beside/below", "current", "home"])
def test_a_base_may_be_a_file_beside_the_sweep_or_in_the_current_folder_or_at_home(
    tmp_path, monkeypatch, place
):
    for folder in ("beside/below", "current", "home"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / place / "mycfg.py").write_text(
        "from digits_resnet import get_config as digits\n\n\n"
        "def get_config(arg=''):\n    config = digits(arg)\n    config.train.epochs = 7\n"
        "    return config\n"
    )
    name = {"beside/below": "below/mycfg.py", "home": "~/mycfg.py"}.get(place, "mycfg.py")
    path = write(tmp_path / "beside", {"a": {}, "b": {"method": "fda"}}, base=f"'{name}:ste'")
    configs = sweep.read(path).configs
    assert [config["method"]["name"] for config in configs.values()] == ["ste", "fda"]
    assert [config["train"]["epochs"] for config in configs.values()] == [7, 7]


def test_a_method_of_ones_own_is_a_run_like_any_other(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "swept.py").write_text(
        "from fda_jax import layers\n\n\ndef half(*, window: float = 0.5) -> layers.Method:\n"
        "    return layers.make_method('ste', window=window)\n"
    )
    runs = [{"method": "swept:half"}, {"method": "swept:half", "method.window": 2}]
    configs = sweep.read(write(tmp_path, runs, base="'digits_resnet:swept:half'")).configs
    assert {name: config["method"] for name, config in configs.items()} == {
        "swept-half": {"name": "swept:half", "window": 0.5},
        "swept-half_window=2": {"name": "swept:half", "window": 2.0},
    }
    with pytest.raises(ConfigError, match=r"run 'swept-hal': the module 'swept'.*mean 'half'"):
        sweep.read(write(tmp_path, [{"method": "swept:hal"}]))


@pytest.mark.parametrize(
    ("runs", "overrides", "words"),
    [
        ([{"train.epoch": 3}], [], ["run 'train.epoch=3'", "'train.epoch'", "'train.epochs'"]),
        ([{"method": "st"}], [], ["run 'st'", "did you mean 'ste'"]),
        ([{"method": "ste", "method.omega": 0.2}], [], ["'ste_omega=0.2'", "'method.omega'"]),
        ([{"train.epochs": 2.5}], [], ["train.epochs is 2.5", "type int"]),
        ([{"train.epochs": True}], [], ["train.epochs is True", "type int"]),
        ([{"model.name": 3}], [], ["model.name is 3", "type str"]),
        ([{}], ["augment.flip=maybe"], ["augment.flip is 'maybe'", "type bool"]),
        ([{}], ["optimizer.boundary_epochs=1;2"], ["'1;2'", "type tuple"]),
        ([{}], ["train.epochs"], ["'train.epochs'", "KEY=VALUE"]),
        ([{"seed": 3}], [], ["--seeds=N"]),
        ([{"train.epochs": 2}], ["train.epochs=3"], ["train.epochs", "own override"]),
        ([{"method": "ste"}] * 2, [], ["two runs", "'ste'"]),
        ({"a/b": {}}, [], ["'a/b'", "letters"]),
        ({"..": {}}, [], ["'..'"]),
        ([], [], ["at least one run"]),
        ({"a": 3}, [], ["'a'", "{dotted key: value}"]),
        ({3: {}}, [], ["by a name", "of 3"]),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_by_the_name_of_its_run(tmp_path, runs, overrides, words):
    with pytest.raises(ConfigError) as error:
        sweep.read(write(tmp_path, runs), overrides)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_file_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no sweep file"):
        sweep.read(tmp_path / "missing.py")
    (tmp_path / "plain.py").write_text("def get_sweep():\n    return None\n")
    with pytest.raises(ConfigError, match="docstring"):
        sweep.read(tmp_path / "plain.py")
    (tmp_path / "cut.py").write_text("def get_config(")
    for base, words in {
        "digit": "no configuration 'digit': use one of configs/.*'digit.py'",
        "digit.py": f"no configuration {tmp_path}/digit.py, nor {os.getcwd()}/digit.py",
        "json": r"configuration 'json' has no get_config\(\)",
        "plain.py:ste": r"configuration 'plain.py' has no get_config\(\)",
        "cut.py": rf"cut.py is not Python \(.* in {tmp_path}/cut.py, line 1\)",
    }.items():
        with pytest.raises(ConfigError, match=words):
            sweep.read(write(tmp_path, [{}], base=repr(base)))


def test_the_constants_of_a_file_are_what_the_report_shows_beside_the_results(tmp_path):
    path = write(tmp_path, {"a": {}, "b": {}, "c": {}})
    plain = path.read_text()
    beside = "PAPER = {'a': 91.5}\nSOURCE = 'T'\nPOINTS = [('l', 1, 'a')]\nAXIS = 'n'\n"
    path.write_text(f"{plain}\nBASELINE = 'b'\n{beside}")
    found = sweep.read(path)
    assert found.baselines == {"a": "b", "c": "b"}
    assert (found.paper, found.source) == ({"a": 91.5}, "T")
    assert (list(found.points), found.axis) == ([("l", 1, "a")], "n")
    other = sweep.read(path, ["model.name=resnet8"])
    assert (other.paper, other.source) == ({}, "")  # of another network nothing was published
    path.write_text(f"{plain}\nBASELINE = {{'a': 'c'}}\n")
    assert sweep.read(path).baselines == {"a": "c"}
    for constants, words in (
        ("BASELINE = 'd'", "in BASELINE of the sweep file: there is no run 'd'"),
        ("BASELINE = {'d': 'a'}", "no run 'd'"),
        ("SOURCE = 'T'\nPAPER = {'aa': 1.0}", "in PAPER.*did you mean 'a'"),
        ("AXIS = 'n'\nPOINTS = [('l', 1, 'd')]", "in POINTS"),
        ("PAPER = {'a': 1.0}", "PAPER or SOURCE, but needs both or neither"),
        ("AXIS = 'n'", "POINTS or AXIS, but needs both or neither"),
    ):
        path.write_text(f"{plain}\n{constants}\n")
        with pytest.raises(ConfigError, match=words):
            sweep.read(path)


# As printed in FDA-BNN's Tables 1 to 5; ResNet-20 is of its plain form.
PUBLISHED = {
    "table1_resnet20": [92.10, 84.44, 85.23, 85.78, 84.34, 84.11, 85.40, 86.20],
    "table1_vgg_small": [94.10, 90.20, 89.90, 89.80, 91.31, 91.72, 90.40, 92.54],
    "table2": [84.44, 85.83, 86.20],
    "table3": [84.11, 84.46, 84.59, 84.87, 85.83, 86.20],
    "table4": [85.27, 85.93, 86.20],
    "table5_resnet18": [
        *(69.6, 55.6, 52.5, 42.2, 51.2, 42.7, 56.4, 59.0, 54.2),
        *(59.4, 59.6, 57.3, 53.6, 58.1, 58.1, 59.9, 60.2),
    ],
    "table5_reactnet": [65.5, 66.0],
    "table5_alexnet": [56.6, 43.6, 41.2, 44.2, 44.4, 46.2],
}
NETWORKS = {
    "table1_vgg_small": "vgg_small",
    "table5_resnet18": "resnet18",
    "table5_reactnet": "resnet18_reactnet",
    "table5_alexnet": "alexnet",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_is_of_one_network_and_the_whole_recipe_and_shows_what_the_paper_prints(path):
    asked = sweep.read(path)
    assert {*asked.baselines, *asked.baselines.values()} <= {*asked.configs}
    assert sorted(asked.paper.values()) == sorted(PUBLISHED.get(path.stem, []))
    for config in asked.configs.values():
        assert idle(config) == []
    (network,) = {config["model"]["name"] for config in asked.configs.values()}
    if path.stem in ("digits", "layers", "methods", "recipe", "scale"):
        return
    assert network == NETWORKS.get(path.stem, "resnet20")
    recipes = [{**config["train"], **config["optimizer"]} for config in asked.configs.values()]
    whole, rates = {
        "resnet18": ((256, 1.0, 512), (1e-3, 0.0)),
        "resnet18_reactnet": ((256, 1.0, 512), (2.5e-3, 1e-5)),
        "alexnet": ((55, 1.0, 512), (1e-3, 0.0)),
    }.get(network, ((400, 1.0, 128), (0.1, 1e-4)))
    for recipe in recipes:
        assert (recipe["epochs"], recipe["budget"], recipe["batch_size"]) == whole
        assert (recipe["learning_rate"], recipe["weight_decay"]) == rates


def test_the_settings_of_figure_4_are_those_of_the_paper():
    folder = REPOSITORY / "configs" / "sweeps"
    four, three = (sweep.read(folder / f"{name}.py") for name in ("figure4", "figure3"))
    for line, n, name in [*four.points, *three.points]:
        method = {**four.configs, **three.configs}[name]["method"]
        first = {"setting 1": n, "setting 2": 1, "setting 3": 9}[line]
        assert (method["num_terms_start"], method["num_terms_end"]) == (first + 1, n + 1)
    assert {name for *_, name in four.points} == {*four.configs}
    assert {name for *_, name in three.points} == {*three.configs}


def test_numbers_of_numpy_and_words_with_commas_are_values_too(tmp_path):
    path = tmp_path / "which.py"
    path.write_text(
        '"""Which?"""\nimport numpy as np\n\n\ndef get_sweep():\n'
        "    return 'digits_resnet', [{'method.omega': w} for w in np.linspace(0.1, 0.3, 3)]\n"
    )
    found = sweep.read(path, ["optimizer.decay_groups=binary,real"])
    assert list(found.runs) == ["omega=0.1", "omega=0.2", "omega=0.3"]
    for config in found.configs.values():
        assert config["optimizer"]["decay_groups"] == ("binary", "real")
        assert type(config["method"]["omega"]) is float


def test_a_sweep_without_runs_or_with_words_for_numbers_is_refused(tmp_path):
    path = tmp_path / "which.py"
    for returned, words in (("None", "must return"), ("'digits_resnet'", "must return")):
        path.write_text(f'"""Which?"""\n\n\ndef get_sweep():\n    return {returned}\n')
        with pytest.raises(ConfigError, match=words):
            sweep.read(path)
    path = write(tmp_path, {"a": {}})
    path.write_text(f"{path.read_text()}\nSOURCE = 'T'\nPAPER = {{'a': '84'}}\n")
    with pytest.raises(ConfigError, match=r"in PAPER .* 'a' is '84': use a number"):
        sweep.read(path)


def test_every_run_is_trained_with_every_seed_and_shards_share_them(tmp_path, trained):
    asked = sweep.read(write(tmp_path, {"a": {}, "b": {}, "c": {}}), SMALL)
    assert sweep.train(asked, tmp_path / "w", seeds=2) == {}
    places = [str(path.relative_to(tmp_path / "w")) for path, _ in trained]
    assert places == ["a/seed0", "b/seed0", "c/seed0", "a/seed1", "b/seed1", "c/seed1"]
    assert [config["seed"] for _, config in trained] == [0, 0, 0, 1, 1, 1]
    whole, parts = list(trained), []
    for i in range(4):
        trained.clear()
        sweep.train(asked, tmp_path / "w", seeds=2, shard=f"{i}/4")
        parts += trained
    assert len(parts) == len(whole)
    assert all(job in parts for job in whole)
    trained.clear()
    sweep.train(asked, tmp_path / "w", only=["c", "a"])
    assert [path.parent.name for path, _ in trained] == ["a", "c"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"shard": "2/2"}, "'2/2'.*0/2"),
        ({"shard": "1"}, "'1'.*0/2"),
        ({"only": ["aa"]}, "no run 'aa'.*did you mean 'a'"),
    ],
)
def test_an_argument_that_cannot_be_is_refused(tmp_path, trained, arguments, words):
    asked = sweep.read(write(tmp_path, {"a": {}, "b": {}}), SMALL)
    with pytest.raises(ValueError, match=words):
        sweep.train(asked, tmp_path / "w", **arguments)
    assert not trained
    assert not (tmp_path / "w").exists()


def test_a_run_that_cannot_be_built_is_named_before_the_first_one_starts(tmp_path, trained):
    runs = [{"method": "ste"}, {"method.omega": -1.0}]
    asked = sweep.read(write(tmp_path, runs), SMALL)
    with pytest.raises(ConfigError, match=r"run 'omega=-1\.0': omega is -1\.0"):
        sweep.train(asked, tmp_path / "w")
    assert not trained
    assert not (tmp_path / "w").exists()
    sweep.train(asked, tmp_path / "w", only=["ste"])
    assert [path.parent.name for path, _ in trained] == ["ste"]


def test_a_run_that_fails_is_named_with_its_error_and_the_others_run(tmp_path, monkeypatch, capsys):
    done = []

    def train(config, workdir, *, stop):
        if workdir.parent.name == "b":
            raise experiment.NonFiniteError("no number: set --config.optimizer.clip_norm=1")
        if workdir.parent.name == "c":
            raise TypeError("a fault of the program")
        done.append(workdir.parent.name)

    monkeypatch.setattr(run, "train", train)
    asked = sweep.read(write(tmp_path, {key: {} for key in "abcd"}), SMALL)
    assert sweep.train(asked, tmp_path / "w") == {
        "b/seed0": "NonFiniteError: no number: set --override=optimizer.clip_norm=1",
        "c/seed0": "TypeError: a fault of the program",
    }
    assert done == ["a", "d"]
    # What a user can mend needs no traceback.
    assert capsys.readouterr().err.count("Traceback") == 1


def test_a_folder_keeps_to_its_sweep_which_may_grow(tmp_path, trained):
    workdir = tmp_path / "w"

    def train(runs, *overrides, **file):
        sweep.train(sweep.read(write(tmp_path, runs, **file), [*SMALL, *overrides]), workdir)

    train({"a": {}}, "data.dir=here")
    recorded = json.loads((workdir / "sweep.json").read_text())
    assert recorded["sweep"] == "small"
    assert recorded["question"] == "Which is it?"
    assert recorded["runs"] == {"a": {}}
    assert recorded["overrides"] == dict(word.split("=") for word in SMALL)
    train({"b": {"method.omega": 0.2}}, "data.dir=there", question="Which one is it?")
    recorded = json.loads((workdir / "sweep.json").read_text())
    assert recorded["question"] == "Which one is it?"
    assert recorded["runs"] == {"a": {}, "b": {"method.omega": 0.2}}
    assert recorded["seeds"] == 1
    assert recorded["overrides"]["train.budget"] == "0.5"
    trained.clear()
    for runs, overrides, file in (
        ({"b": {"method.omega": 0.3}}, [], {}),
        ({"a": {}}, ["optimizer.momentum=0.5"], {}),
        ({"a": {}}, ["train.budget=0.25"], {}),
        ({"a": {}}, [], {"name": "other"}),
    ):
        with pytest.raises(WorkdirError, match="another sweep"):
            train(runs, *overrides, **file)
    RunFolder(tmp_path / "single").claim({"seed": 0})
    with pytest.raises(WorkdirError, match="single run"):
        sweep.train(sweep.read(write(tmp_path, {"a": {}}), SMALL), tmp_path / "single")
    assert not trained


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_and_ends_as_if_its_runs_were_trained_alone(
    tmp_path, monkeypatch, capsys
):
    asked = sweep.read(write(tmp_path, [{"method": "ste"}]), SMALL)
    workdir = tmp_path / "w"
    advance = loop.Trainer._advance

    def advance_and_signal(self, progress, call, item):
        seconds = advance(self, progress, call, item)
        if call.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return seconds

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_advance", advance_and_signal)
        assert sweep.train(asked, workdir, seeds=2) == {}
    assert "stopped by a signal after step 7 of 10" in capsys.readouterr().out
    assert [path.name for path in (workdir / "ste").iterdir()] == ["seed0"]
    assert not (workdir / "ste" / "seed0" / "result.json").exists()

    assert sweep.train(asked, workdir, seeds=2) == {}
    assert "going on from step 7 of 10" in capsys.readouterr().out
    experiment.train(asked.configs["ste"], tmp_path / "alone")
    assert rows(workdir / "ste" / "seed0") == rows(tmp_path / "alone")
    assert rows(workdir / "ste" / "seed1") != rows(tmp_path / "alone")
    flips = [row["flips"] for row in rows(tmp_path / "alone") if row["split"] == "train"]
    assert len(flips) == 2
    assert all(0 < share < 1 for share in flips)

    def files():
        return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}

    before = files()
    assert sweep.train(asked, workdir, seeds=2) == {}
    assert files() == before
    mark = "budget 0.5: 2 of 4 epochs"
    assert f"({mark})" in capsys.readouterr().out
    for name in ("config.json", "result.json"):
        written = json.loads((workdir / "ste" / "seed0" / name).read_text())
        assert written.get("config", written)["train"]["budget"] == 0.5
    assert report.main([str(workdir)]) == 0
    assert f"# Which is it? ({mark})" in capsys.readouterr().out


@pytest.mark.slow
def test_flips_are_not_counted_where_nobody_asks(tmp_path):
    asked = sweep.read(write(tmp_path, [{"method": "ste"}]), [*SMALL, "eval.flips=false"])
    sweep.train(asked, tmp_path / "w")
    assert all("flips" not in row for row in rows(tmp_path / "w" / "ste" / "seed0"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_of_a_sweep_states_its_question_its_budget_and_its_command(path):
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert header.split("\n\n")[0].endswith("?")
    assert "Budget: " in header
    assert f"python train.py --sweep=configs/sweeps/{path.name} --workdir=" in header


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_can_be_built(path):
    # The digits stand in for images that are not there, with a network that takes them quickly.
    network = "resnet8" if path.stem == "layers" else "tiny"  # which has all that are named
    digits = {"model.name": network, "data.name": "digits", "data.limit": "0"}
    asked = sweep.read(path, [f"{key}={value}" for key, value in digits.items()])
    sweep._check(asked, dict.fromkeys(asked.runs, ()))


@pytest.mark.parametrize("key", ["train.teacher", "train.init_from"])
@pytest.mark.parametrize("method", ["ste", "lns"])
def test_what_a_run_learns_or_starts_from_is_there_before_the_first_one_is_trained(
    tmp_path, trained, key, method
):
    path = write(tmp_path, {"a": {"method": "ste"}, "b": {"method": method, key: "../a/seed0"}})
    # What the sweep itself trains is there in time.
    sweep.train(sweep.read(path, SMALL), tmp_path / "w")
    assert len(trained) == 2
    for given, place in (("../../no", "no"), ("no", "x/b/no")):
        path = write(tmp_path, {"a": {"method": "ste"}, "b": {"method": method, key: given}})
        words = rf"run 'b': {key} is .*{tmp_path}/{place} holds no run.*--override"
        with pytest.raises(ConfigError, match=words):
            sweep.train(sweep.read(path, SMALL), tmp_path / "x")
    assert len(trained) == 2
    assert not (tmp_path / "x").exists()


def test_the_methods_sweep_has_every_method_once():
    asked = sweep.read(REPOSITORY / "configs" / "sweeps" / "methods.py")
    knobs = importlib.import_module("methods").KNOBS
    assert {name: config["method"] for name, config in asked.configs.items()} == {
        name: {"name": name, **knobs[name]} for name in knobs
    }


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--override=train.epoch=3"], ["run 'full_precision'", "'train.epochs'"]),
        (["--config=configs/digits_resnet.py"], ["--sweep"]),
    ],
)
def test_the_command_line_refuses_in_words_and_with_a_failing_exit_code(tmp_path, flags, words):
    done = subprocess.run(
        [
            sys.executable,
            "train.py",
            "--sweep=configs/sweeps/methods.py",
            f"--workdir={tmp_path / 'w'}",
            *flags,
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert all(word in output for word in words), output
    assert not (tmp_path / "w").exists()
