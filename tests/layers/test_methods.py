"""The table of methods: its rows, their knobs, and what is refused."""

import dataclasses
import inspect
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers import METHODS, Method, Noise, Quantizer, knobs_of, lookup, make_method
from fda_jax.layers.multibit import UniformWeights
from fda_jax.layers.normalize import CenteredWeights, StandardizedFilters
from fda_jax.layers.outputs import OutputScale
from fda_jax.layers.penalties import TowardsScale
from fda_jax.layers.rotation import RotatedWeights
from fda_jax.layers.shift import ShiftedSign

CLIP, WIDE, SIGN = ops.ClippedSTE(1.0), ops.ClippedSTE(1.25), ops.Identity()
# Setting 3: n = 9 to 18, that is N = 10 to 19; k = 64 and a = 0.1 (sections 2.3 and 3.2).
WAVE = ops.Fourier(omega=0.1, window=1.0, num_terms_start=10, num_terms_end=19)
NOISE = Noise(0.1, "sine", shortcut_slope=0.1, reduction=64, reading="forward")
DECAY, ROOT = ops.EDE(t_start=1e-3, t_end=10.0), ops.ReSTE(3.0, inner=0.1, window=1.5)
SWISH, TANH = ops.SignSwish(beta=5.0), ops.DSQ(alpha=0.2, window=1.0)
SIGMOID = ops.SigmoidSum(temperature_start=10.0, temperature_end=30.0)
BIREAL = Method(Quantizer(CLIP, "filter"), Quantizer(ops.ApproxSign()), nonlinearity="none")
ROWS = {
    "full_precision": Method(None, None),
    "identity": Method(Quantizer(SIGN, "layer", scale_in_gradient=False), Quantizer(SIGN)),
    "ste": Method(Quantizer(CLIP, "layer", scale_in_gradient=False), Quantizer(CLIP)),
    "binarynet": Method(Quantizer(SIGN), Quantizer(CLIP), latent_rule=ops.ClipLatents(1.0)),
    "dorefa": Method(Quantizer(SIGN, "layer", scale_in_gradient=False), Quantizer(CLIP)),
    "xnor_net": Method(
        Quantizer(CLIP, "filter", normalize=CenteredWeights(1.0), scale_gradient=True),
        Quantizer(CLIP),
    ),
    "xnor_net_pp": Method(
        Quantizer(CLIP), Quantizer(CLIP), output=OutputScale("channel_height_width")
    ),
    "tbn": Method(
        Quantizer(SIGN, "filter", scale_in_gradient=False), Quantizer(ops.Ternary(0.4, window=1.0))
    ),
    "hwgq": Method(
        Quantizer(SIGN, "filter", scale_in_gradient=False),
        Quantizer(ops.HalfWaveGaussian(2)),
        nonlinearity="none",
    ),
    "bireal": BIREAL,
    "bireal_prelu": dataclasses.replace(BIREAL, nonlinearity="prelu"),
    "bnn_plus": Method(
        Quantizer(SWISH, "filter", penalty=TowardsScale("l1", 1e-6)), Quantizer(SWISH)
    ),
    "dsq": Method(Quantizer(TANH, "layer"), Quantizer(TANH)),
    "quantization_networks": Method(Quantizer(SIGMOID, "learned"), Quantizer(SIGMOID)),
    "irnet": Method(
        Quantizer(DECAY, "power_of_two", normalize=StandardizedFilters()),
        Quantizer(dataclasses.replace(DECAY, window=1.0)),
    ),
    "resnete": Method(
        Quantizer(WIDE),
        Quantizer(WIDE),
        nonlinearity="none",
        latent_rule=ops.ClipLatents(1.25),
    ),
    "bop": Method(
        Quantizer(SIGN), Quantizer(CLIP), latent_rule=ops.Bop(1e-8, gamma=1e-4, decay=0.1)
    ),
    "reactnet": Method(
        Quantizer(CLIP, "filter"), ShiftedSign(Quantizer(ops.ApproxSign())), nonlinearity="rprelu"
    ),
    "reste": Method(Quantizer(ROOT, "layer", scale_gradient=True), Quantizer(ROOT)),
    "fda": Method(
        Quantizer(WAVE, "layer", NOISE, scale_in_gradient=False), Quantizer(WAVE, noise=NOISE)
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_row_builds_a_hashable_method_with_its_defaults(name: str) -> None:
    method = make_method(name)
    assert isinstance(method, Method)
    assert method == make_method(name)
    assert hash(method) == hash(make_method(name))
    if isinstance(method.activation, Quantizer):
        assert method.activation.scale == "none"


@pytest.mark.parametrize("name", METHODS)
def test_every_knob_has_a_default(name: str) -> None:
    for knob in inspect.signature(METHODS[name]).parameters.values():
        assert knob.kind is inspect.Parameter.KEYWORD_ONLY
        assert knob.default is not inspect.Parameter.empty


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_that_of_its_paper(name: str) -> None:
    assert make_method(name) == ROWS[name]


def test_knobs_reach_the_rule_and_the_noise_module() -> None:
    method = make_method(
        "fda",
        scale="filter",
        scale_in_gradient=True,
        omega=0.2,
        window=0.5,
        num_terms_start=2,
        num_terms_end=3,
        noise="backward",
        noise_scale=0.7,
        noise_shortcut="linear",
        noise_shortcut_slope=0.4,
        noise_reduction=8,
        noise_schedule="linear",
        noise_end=0.75,
        noise_weight_axis="channels",
        noise_activation_axis="pixels",
    )
    rule = ops.Fourier(0.2, 0.5, 2, 3)
    noise = Noise(0.7, "linear", 0.4, 8, "backward", "linear", "channels", "pixels", 0.75)
    assert method == Method(Quantizer(rule, "filter", noise), Quantizer(rule, noise=noise))


@pytest.mark.parametrize(
    ("name", "knobs", "expected"),
    [
        (
            "identity",
            {"scale": "none", "scale_in_gradient": True},
            {"weight": Quantizer(SIGN)},
        ),
        (
            "ste",
            {"window": 0.5, "scale": "none"},
            {
                "weight": Quantizer(ops.ClippedSTE(0.5), scale_in_gradient=False),
                "activation": Quantizer(ops.ClippedSTE(0.5)),
            },
        ),
        ("binarynet", {"window": 0.5}, {"activation": Quantizer(ops.ClippedSTE(0.5))}),
        ("dorefa", {"weight_bits": 3}, {"weight": UniformWeights(3)}),
        ("dorefa", {"activation_bits": 3}, {"activation": Quantizer(ops.UniformActivation(3))}),
        (
            "dorefa",
            {"activation_levels": "unsigned"},
            {"activation": Quantizer(ops.UniformActivation(1))},
        ),
        ("xnor_net_pp", {"scale_shape": "channel"}, {"output": OutputScale("channel")}),
        (
            "tbn",
            {"threshold": 0.7, "window": 2.0},
            {"activation": Quantizer(ops.Ternary(0.7, 2.0))},
        ),
        ("hwgq", {"activation_bits": 3}, {"activation": Quantizer(ops.HalfWaveGaussian(3))}),
        ("tbn", {"scale_in_gradient": True}, {"weight": Quantizer(SIGN, "filter")}),
        ("hwgq", {"scale_in_gradient": True}, {"weight": Quantizer(SIGN, "filter")}),
        ("bireal", {"scale": "layer"}, {"weight": Quantizer(CLIP, "layer")}),
        ("bireal_prelu", {"scale": "layer"}, {"weight": Quantizer(CLIP, "layer")}),
        ("bnn_plus", {"regularizer": "none"}, {"weight": Quantizer(SWISH, "filter")}),
        (
            "bnn_plus",
            {"regularizer": "l2", "regularizer_weight": 0.3},
            {"weight": Quantizer(SWISH, "filter", penalty=TowardsScale("l2", 0.3))},
        ),
        ("bnn_plus", {"beta": 2.0}, {"activation": Quantizer(ops.SignSwish(2.0))}),
        ("dsq", {"alpha": 0.1, "window": 2.0}, {"activation": Quantizer(ops.DSQ(0.1, 2.0))}),
        (
            "quantization_networks",
            {"temperature_start": 1.0, "temperature_end": 50.0},
            {"activation": Quantizer(ops.SigmoidSum(1.0, 50.0))},
        ),
        (
            "irnet",
            {"t_start": 0.1, "t_end": 5.0, "window": 2.0},
            {"activation": Quantizer(ops.EDE(0.1, 5.0, 2.0))},
        ),
        (
            "resnete",
            {"window": 1.0},
            {"weight": Quantizer(CLIP), "latent_rule": ops.ClipLatents(1.0)},
        ),
        ("bop", {"threshold": 1e-6, "gamma": 0.1}, {"latent_rule": ops.Bop(1e-6, 0.1)}),
        ("bop", {"gamma_decay": 1.0}, {"latent_rule": ops.Bop(1e-8, 1e-4, decay=1.0)}),
        ("reactnet", {"scale": "layer"}, {"weight": Quantizer(CLIP, "layer")}),
        (
            "reste",
            {"power_end": 2.0, "inner": 0.2, "window": 1.0},
            {"activation": Quantizer(ops.ReSTE(2.0, 0.2, 1.0))},
        ),
    ],
)
def test_a_knob_changes_what_it_names(name: str, knobs, expected) -> None:
    method = make_method(name, **knobs)
    assert {field: getattr(method, field) for field in expected} == expected
    assert method != make_method(name)


@pytest.mark.parametrize("name", ["ste", "dsq", "bnn_plus"])
def test_the_noise_module_stands_on_other_estimators_too(name: str) -> None:
    bare, noisy = make_method(name), make_method(name, noise="forward")
    assert bare.weight.noise is bare.activation.noise is None
    assert noisy == dataclasses.replace(
        bare,
        weight=dataclasses.replace(bare.weight, noise=NOISE),
        activation=dataclasses.replace(bare.activation, noise=NOISE),
    )
    knobs = {"noise_scale": 0.7, "noise_shortcut": "linear", "noise_shortcut_slope": 0.4}
    noisy = make_method(name, noise="backward", noise_reduction=8, **knobs)
    assert noisy.weight.noise == Noise(0.7, "linear", 0.4, 8, "backward")


def test_fdas_gradient_in_reactnet_is_that_of_fda_behind_the_shift() -> None:
    method, fda = make_method("reactnet", slope="fourier", noise="forward"), make_method("fda")
    assert method.activation == ShiftedSign(fda.activation)
    assert method.weight == dataclasses.replace(fda.weight, scale="filter", scale_in_gradient=True)
    # Nothing else is another than ReActNet's own.
    own = make_method("reactnet")
    assert method == dataclasses.replace(own, weight=method.weight, activation=method.activation)
    first = make_method("reactnet", slope="fourier", noise="forward", weights="real")
    assert first == dataclasses.replace(method, weight=None)
    for knobs in ({"slope": "ste"}, {"weights": "signs"}):
        with pytest.raises(ValueError, match="use one of"):
            make_method("reactnet", **knobs)


def test_the_sine_module_alone_has_no_noise() -> None:
    method = make_method("fda", noise="none")
    assert method.weight.noise is None
    assert method.activation.noise is None


def test_a_finished_method_is_returned_as_it_is_and_takes_no_knobs() -> None:
    method = make_method("ste")
    assert make_method(method) is method
    with pytest.raises(ValueError, match=r"the knobs omega, scale were given.*method's name"):
        make_method(method, scale="none", omega=0.1)


def test_an_unknown_method_is_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(ValueError, match=r"no method 'fdaa' \(did you mean 'fda'\?\).*bireal"):
        make_method("fdaa")
    with pytest.raises(ValueError, match="no method 'qqq': use one of") as refused:
        make_method("qqq")
    assert "did you mean" not in str(refused.value)


def test_an_unknown_knob_is_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(ValueError, match=r"'fda' has no knob 'omegas' \(did you mean 'omega'\?\)"):
        make_method("fda", omegas=0.1)
    with pytest.raises(ValueError, match=r"no knob 'omega'.*its knobs are none"):
        make_method("full_precision", omega=0.1)


def test_a_knob_out_of_range_is_refused_by_its_rule() -> None:
    with pytest.raises(ValueError, match=r"omega is -1"):
        make_method("fda", omega=-1)


@pytest.mark.parametrize(
    ("name", "knob", "value", "words"),
    [
        ("fda", "omega", "0.1", "omega is '0.1': use a number, such as the default 0.1"),
        ("fda", "omega", True, "omega is True: use a number"),
        ("fda", "num_terms_start", 2.5, "num_terms_start is 2.5: use a whole number"),
        ("fda", "noise_reduction", np.inf, "noise_reduction is inf: use a whole number"),
        ("ste", "window", None, "window is None: use a number"),
        ("ste", "window", jnp.float32(0.5), "window is Array.*: use a number"),
        ("ste", "scale", ["layer"], "scale is .*: use text, such as the default 'layer'"),
        ("ste", "scale_in_gradient", "no", "scale_in_gradient is 'no': use True or False"),
    ],
)
def test_a_knob_of_another_kind_is_refused(name: str, knob: str, value, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_method(name, **{knob: value})


def test_a_knob_may_be_a_number_of_numpys() -> None:
    made = make_method("fda", omega=np.float64(0.2), num_terms_end=np.int64(12), window=1)
    assert made == make_method("fda", omega=0.2, num_terms_end=12, window=1.0)


@pytest.mark.parametrize("method", [None, Method, lambda: None, Quantizer(ops.Fourier())])
def test_what_is_neither_a_name_nor_a_method_is_refused(method) -> None:
    with pytest.raises(TypeError, match=r"the method is .*: use a name .* or a Method"):
        make_method(method)


@pytest.mark.parametrize(
    ("operands", "words"),
    [
        ({"weight": ops.ClippedSTE()}, r"weight is ClippedSTE\(.*: use a Quantizer"),
        ({"activation": RotatedWeights}, r"activation is <class .*: use a Quantizer"),
        ({"output": OutputScale}, r"output is <class .*: use a module or None"),
    ],
)
def test_an_operand_that_is_no_quantizer_is_refused(operands, words) -> None:
    with pytest.raises(TypeError, match=words):
        Method(**{"weight": None, "activation": None, **operands})


@pytest.mark.parametrize("patterns", ["stage1_*", (1,), None])
def test_one_text_is_no_patterns_of_layers(patterns) -> None:
    """Its letters would be: the last of "stage1_*" is that of all layers."""
    with pytest.raises(ValueError, match=r"real_layers is .*: use a tuple .* \('stage3_\*',\)"):
        dataclasses.replace(make_method("fda"), real_layers=patterns)


def test_patterns_of_layers_may_be_a_list() -> None:
    made = dataclasses.replace(make_method("fda"), real_layers=["stage1_*"])
    assert made.real_layers == ("stage1_*",)
    hash(made)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_made_within_a_layer_is_that_made_outside(name: str) -> None:
    """Flax makes a module that is made within another one its child."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self):
            return make_method(name)

    assert Layer().apply({}) == make_method(name)


OWN = """
import json
from fda_jax import layers, ops
from fda_jax.layers.methods import takes_noise

def halved(*, window: float = 0.5, scale: str = "layer") -> layers.Method:
    rule = ops.ClippedSTE(window)
    return layers.Method(layers.Quantizer(rule, scale), layers.Quantizer(rule))

@takes_noise("none")
def noisy(*, window: float = 0.5) -> layers.Method:
    return halved(window=window)

def postponed() -> "layers.Method":
    return halved()

def silent():
    raise SystemExit("it must not be called")

def bare(window) -> layers.Method:
    return halved(window=window)

def many(**knobs: float) -> layers.Method:
    return halved(**knobs)

def name(*, name: str = "x") -> layers.Method:
    return halved()

def nothing() -> layers.Method:
    return None

def broken(*, window: float = 0.5) -> layers.Method:
    return [][0]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module "mine" that is found, one "bad" that is not Python, and one that lacks another."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine", "bad", "lacking"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "bad.py").write_text("def f(:\n")
    (tmp_path / "lacking.py").write_text("import no_such_thing\n")


@pytest.mark.usefixtures("own")
def test_a_method_of_ones_own_is_named_by_its_module_and_function() -> None:
    rule = ops.ClippedSTE(0.8)
    expected = Method(Quantizer(rule, "layer"), Quantizer(rule))
    assert make_method("mine:halved", window=0.8) == expected
    assert knobs_of("mine:halved") == {"window": 0.5, "scale": "layer"}
    assert make_method("mine:noisy", noise="forward").weight.noise == NOISE
    assert make_method("mine:postponed") == make_method("mine:halved")


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mine:halve",
            r"'mine' \(.*mine\.py\) has no function 'halve' \(did you mean 'halved'\?\)",
        ),
        ("yours:halved", "no module 'yours': let it lie in the current folder"),
        ("mine.yours:halved", "no module 'mine.yours'"),
        ("bad:f", r"'bad' cannot be imported \(SyntaxError.*python -c 'import bad' shows"),
        ("lacking:f", "'lacking' cannot be imported .*'no_such_thing'"),
        ("mine.py:halved", "names no function: write 'module:function', without a path and .py"),
        ("./mine:halved", "names no function"),
        ("/x/mine:halved", "names no function"),
        ("mine:halved()", "names no function"),
        ("mine:halved:x", "names no function"),
        ("mine:", "names no function"),
        ("mine:silent", r"is not called: declare it, def silent\(\.\.\.\) -> Method"),
        ("os:abort", "is not called"),
        ("mine:json", "is not called"),
        ("mine:bare", r"the parameter \(window\) of 'mine:bare' cannot be recorded"),
        ("mine:many", r"the parameter \(\*\*knobs: float\)"),
        ("mine:name", r"\(name: str = 'x'\).*another name than 'name'"),
        ("mine:nothing", "'mine:nothing' returned None: let it return a Method"),
        ("mine:broken", r"mine\.py\) fails with \{\} \(IndexError: list index out of range\)"),
    ],
)
def test_what_is_no_method_of_ones_own_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(name)


@pytest.mark.usefixtures("own")
def test_knobs_of_ones_own_method_are_refused_like_all_others() -> None:
    with pytest.raises(ValueError, match=r"'mine:halved' has no knob 'windo' \(did you mean 'win"):
        make_method("mine:halved", windo=1.0)
    with pytest.raises(ValueError, match="scale is 'whole'"):
        make_method("mine:halved", scale="whole")


def test_lookup_gives_the_entry_of_any_table() -> None:
    assert lookup({"a": 1}, "a", "letter") == 1
    with pytest.raises(ValueError, match="there is no letter 'b': use one of a"):
        lookup({"a": 1}, "b", "letter")


def test_the_table_is_read_only() -> None:
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["fda"]
