"""Every configuration loads, builds what it says, and is explained by its header."""

import ast
import importlib
import inspect
import re
from typing import get_origin

import pytest

from fda_jax import models
from fda_jax.experiment import idle, inherit, setup, stages
from fda_jax.experiment.folder import leaves
from fda_jax.layers import METHODS
from tests.conftest import REPOSITORY

NAMES = sorted(
    path.stem for path in (REPOSITORY / "configs").glob("*.py") if path.stem != "methods"
)
# The method of a configuration that names none; elsewhere it is "fda".
DEFAULTS = {"digits_vit": "bnn_plus_plus", "imagenet_reactnet": "reactnet"}
STEPS = {
    "stages.stage1.epochs_share",
    "stages.stage1.method.weights",
    "stages.stage2.optimizer.weight_decay",
}


def keys(config, prefix=""):
    found = set()
    for key, value in config.items():
        if hasattr(value, "items") and prefix + key != "method":
            found |= keys(value, f"{prefix}{key}.")
        else:
            found.add(prefix + key)
    return found


def test_the_knobs_of_the_configurations_are_the_methods_own_with_their_defaults():
    knobs = importlib.import_module("methods").KNOBS
    assert set(knobs) == set(METHODS)
    for name, row in METHODS.items():
        defaults = {k: p.default for k, p in inspect.signature(row).parameters.items()}
        assert knobs[name] == defaults, name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["", *METHODS])
def test_a_configuration_takes_every_method_and_adds_no_key(name, method):
    module = importlib.import_module(name)
    config = module.get_config(method)
    base = importlib.import_module("base").get_config(method)
    # ReActNet's steps are of this recipe, not of the method.
    steps = STEPS if (name, method or "reactnet") == ("imagenet_reactnet", "reactnet") else set()
    assert keys(config) == keys(base) | steps
    assert config.method.name == (method or DEFAULTS.get(name, "fda"))
    assert config.model.name in models.MODELS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["", *importlib.import_module("methods").STAGES])
def test_every_change_of_a_configuration_counts(name, method):
    config = importlib.import_module(name).get_config(method).to_dict()
    assert idle.idle(config) == []


def test_the_rules_of_keys_without_effect_know_the_defaults():
    base = leaves(importlib.import_module("base").get_config().to_dict())
    for key, default, *_ in idle.RULES:
        assert (key, base[key]) == (key, default)


def test_the_types_of_values_are_those_of_the_base():
    base = leaves(importlib.import_module("base").get_config().to_dict())
    own = {key: type(value) for key, value in base.items() if not key.startswith("method.")}
    types = {key: get_origin(kind) or kind for key, kind in leaves(setup.KEYS).items()}
    assert {"seed": int, **types} == own


def test_the_recipe_of_the_paper_stands_in_the_base():
    base = importlib.import_module("base").get_config()
    assert (base.train.epochs, base.train.batch_size) == (400, 128)
    optimizer = base.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.1, 0.9)
    assert (optimizer.weight_decay, optimizer.schedule) == (1e-4, "cosine")
    assert (base.method.num_terms_start, base.method.num_terms_end) == (10, 19)


@pytest.mark.parametrize("name", NAMES)
def test_a_head_names_records_that_are_there_and_repeats_no_means_of_theirs(name):
    head = importlib.import_module(name).__doc__ or ""
    for record in re.findall(r"results/(?!README)\w+", head):
        assert (REPOSITORY / record / "report.md").is_file(), record
    assert not re.search(r"\d\s*(?:\+-|±)\s*\d", head), "they change with each record made anew"


@pytest.mark.parametrize("network", ["resnet18", "alexnet"])
def test_the_recipe_for_imagenet_is_that_of_section_3_3(network):
    config = importlib.import_module(f"imagenet_{network}").get_config()
    assert config.model.name == network
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adam", 1e-3, 0.0)
    models.check_image_shape(config.model.name, (config.data.image_size,) * 2 + (3,))
    # Random crops and mirror images, both made where the images are decoded.
    wanted = {"crop_px": 0, "flip": True, "smallest_area": 0.08}
    assert config.augment.to_dict() == wanted


def test_the_two_steps_of_reactnet_are_its_released_recipe_and_can_follow_one_another():
    config = importlib.import_module("imagenet_reactnet").get_config()
    with config.unlocked():
        config.data.name = "digits"
        config.model.name = "resnet_digits"
    for slope, noise in (("bireal", "none"), ("fourier", "forward")):
        config.method.slope, config.method.noise = slope, noise
        first, second = stages.split(config.to_dict())
        for part, weights, decay in ((first, "real", 1e-5), (second, "binary", 0.0)):
            assert part["method"]["weights"] == weights
            assert part["train"]["epochs"] == 128
            assert part["train"]["teacher"] == "../resnet34"
            optimizer = part["optimizer"]
            assert (optimizer["learning_rate"], optimizer["weight_decay"]) == (2.5e-3, decay)
            assert (optimizer["name"], optimizer["schedule"]) == ("adam", "linear")
        built = [setup.build(part) for part in (first, second)]
        inherit.check_stages(["stage1", "stage2"], built)
        real, binary = (one.model.method for one in built)
        assert (real.weight, real.activation) == (None, binary.activation)


def test_the_stages_of_a_method_can_follow_one_another():
    for name in importlib.import_module("methods").STAGES:
        assert name in METHODS
        config = importlib.import_module("digits_resnet").get_config(name).to_dict()
        parts = stages.split(config)
        assert sum(part["train"]["epochs"] for part in parts) == config["train"]["epochs"]
        inherit.check_stages(list(config["stages"]), [setup.build(part) for part in parts])


def test_a_method_that_cannot_start_from_random_weights_has_stages():
    demanding = {name for name, row in METHODS.items() if row().predecessor}
    assert demanding <= set(importlib.import_module("methods").STAGES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "base"])
def test_the_header_of_a_configuration_shows_its_command(name):
    text = (REPOSITORY / "configs" / f"{name}.py").read_text()
    header = ast.get_docstring(ast.parse(text)) or ""
    assert f"python train.py --config=configs/{name}.py --workdir=" in header


def test_the_digits_configuration_builds_an_experiment():
    config = importlib.import_module("digits_resnet").get_config().to_dict()
    built = setup.build(config)
    assert built.plan.num_train + built.plan.num_test == 1797
    assert built.dataset.image_shape_hwc == (8, 8, 1)


def test_a_knob_of_ones_own_that_is_called_as_one_of_noise_counts():
    config = importlib.import_module("base").get_config("ste").to_dict()
    own = {"name": "mine:shaken", "noise_scale": 0.5}
    assert idle.idle({**config, "method": own}) == []
    assert len(idle.idle({**config, "method": {**own, "noise": "none"}})) == 1
