"""Runs that start from a file of weights, whoever trained them."""

import re

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fda_jax import experiment
from fda_jax.experiment import inherit, loop, setup
from tests.conftest import REPOSITORY, STE, small_config


@pytest.fixture(scope="module")
def variables(whole):
    """Those that a run ended with, by path."""
    with experiment.opened(whole[0]) as run:
        state = jax.device_get(run.last())
    return flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")


def predecessor(path):
    return inherit.Predecessor(str(path), path.parent / "next")


@pytest.mark.slow
def test_a_file_of_all_that_a_run_ended_with_is_that_run(whole, variables, tmp_path):
    np.savez(tmp_path / "all.npz", **variables)
    built = setup.build(small_config())
    start = predecessor(tmp_path / "all.npz")
    start.check(built, small_config()["data"])
    chex.assert_trees_all_equal(start.values(built), predecessor(whole[0]).values(built))
    assert start.told(built) == f"starting from the parameters of {tmp_path / 'all.npz'}"


def test_what_a_file_lacks_starts_new_and_is_told(variables, tmp_path, capsys):
    variables = {path: array for path, array in variables.items() if "noise" not in path}
    kept = {path: array for path, array in variables.items() if "classifier" not in path}
    # Real weights are what a binary layer starts from.
    kept = {path.replace("latent_kernel", "kernel"): array for path, array in kept.items()}
    np.savez(tmp_path / "body.npz", **kept)
    config = small_config(**{"train.init_from": "body.npz", "train.epochs": 1})
    config["method"] = STE
    built = setup.build(config)
    state = loop.start(built, predecessor(tmp_path / "body.npz").values(built)).state
    fresh = loop.start(built).state
    found = flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    new = flatten_dict({"params": fresh.params}, sep="/")
    assert found.keys() == variables.keys()
    for path, array in found.items():
        origin = new if "classifier" in path else variables
        np.testing.assert_array_equal(array, origin[path], err_msg=path)
    experiment.train(config, tmp_path / "run")
    assert (
        f"starting from the parameters of {tmp_path / 'body.npz'}; new, for it has none: "
        "params/classifier/bias, params/classifier/kernel\n"
    ) in capsys.readouterr().out
    # Once it has a checkpoint it needs the file no more.
    (tmp_path / "body.npz").unlink()
    (tmp_path / "run" / "result.json").unlink()
    assert experiment.train(config, tmp_path / "run")["steps"] == 5


BIAS = "params/classifier/bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"params/clasifier/bias": np.zeros(10, np.float32)}, "params/clasifier/bias is float32"),
        ({BIAS: np.zeros(9, np.float32)}, f"{BIAS} is float32[9] there and float32[10] here"),
        ({BIAS: np.zeros(10)}, f"{BIAS} is float64[10] there and float32[10] here"),
        ({BIAS: np.full(10, np.nan, np.float32)}, f"{BIAS} in "),
        ({BIAS: np.array([{}])}, "Object arrays cannot be loaded"),
        (b"", "EOFError"),
        (b"no archive", "cannot be read (ValueError"),
        (np.zeros(3), "cannot be read (TypeError"),
        (None, "cannot be read (FileNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_started_from_is_refused_before_anything_is_written(
    change, words, variables, tmp_path, monkeypatch
):
    path = tmp_path / "weights.npz"
    if isinstance(change, dict):
        np.savez(path, **{**variables, **change})
    elif isinstance(change, np.ndarray):
        with path.open("wb") as file:
            np.save(file, change)
    elif change is not None:
        path.write_bytes(change)
    monkeypatch.setattr(jax, "pmap", lambda *_, **__: pytest.fail("something was compiled"))
    with pytest.raises(setup.ConfigError) as error:
        experiment.train(small_config(**{"train.init_from": "weights.npz"}), tmp_path / "run")
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_network_of_pytorchs_names_is_read_by_the_recipe(tmp_path):
    page = (REPOSITORY / "docs" / "recipes.md").read_text()
    recipe = re.search(r"```python\n(import re.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(recipe[1], names)
    state = torch_state(np.random.default_rng(0))
    np.savez(tmp_path / "weights.npz", **names["renamed"](state))
    built = setup.build({**small_config(**{"model.name": "resnet20"}), "method": STE})
    start = predecessor(tmp_path / "weights.npz")
    values = flatten_dict(start.values(built), sep="/")
    assert start.told(built).endswith(
        "stage1_block3/prelu1/negative_slope and 13 more"  # two of each of nine blocks
    )
    counted = [name for name in state if not name.endswith("num_batches_tracked")]
    assert len(values) == len(counted)
    # PyTorch's layers as it documents them.
    images = np.random.default_rng(1).normal(size=(2, 3, 4, 16)).astype(np.float32)
    theirs = jax.lax.conv_general_dilated(
        images.transpose(0, 3, 1, 2), state["layer2.0.conv1.weight"], (2, 2), [(1, 1)] * 2
    )
    ours = jax.lax.conv_general_dilated(
        images,
        values["params/stage2_block1/conv1/latent_kernel"],
        (2, 2),
        [(1, 1)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(np.moveaxis(theirs, 1, 3), ours, atol=1e-5)
    np.testing.assert_array_equal(values["params/classifier/kernel"].T, state["fc.weight"])
    for ours, theirs in (
        ("params/classifier/bias", "fc.bias"),
        ("params/stem_norm/scale", "bn1.weight"),
        ("params/stage3_block2/norm1/bias", "layer3.1.bn1.bias"),
        ("batch_stats/stage3_block2/norm1/mean", "layer3.1.bn1.running_mean"),
        ("batch_stats/stage1_block3/norm2/var", "layer1.2.bn2.running_var"),
    ):
        np.testing.assert_array_equal(values[ours], state[theirs])


def torch_state(rng):
    """Random weights of a ResNet-20 for grey images, under torchvision's names."""

    def normalisation(size):
        vectors = ("weight", "bias", "running_mean", "running_var")
        return {name: rng.uniform(1, 2, size) for name in vectors} | {"num_batches_tracked": 7}

    modules = {"conv1": {"weight": rng.normal(size=(16, 1, 3, 3))}, "bn1": normalisation(16)}
    before = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for place in (f"layer{stage}.{block}" for block in range(3)):
            for number in (1, 2):
                kernel = rng.normal(size=(width, before, 3, 3))
                modules[f"{place}.conv{number}"] = {"weight": kernel}
                modules[f"{place}.bn{number}"] = normalisation(width)
                before = width
    modules["fc"] = {"weight": rng.normal(size=(10, 64)), "bias": rng.normal(size=10)}
    return {
        f"{module}.{field}": np.asarray(array, np.float32)
        for module, fields in modules.items()
        for field, array in fields.items()
    }
