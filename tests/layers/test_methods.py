"""The table of methods: its rows, their knobs, and what is refused."""

import inspect

import pytest

from fda_jax import ops
from fda_jax.layers import METHODS, Method, Noise, Quantizer, lookup, make_method


@pytest.mark.parametrize("name", METHODS)
def test_every_row_builds_a_hashable_method_with_its_defaults(name: str) -> None:
    method = make_method(name)
    assert isinstance(method, Method)
    assert method == make_method(name)
    assert hash(method) == hash(make_method(name))
    if method.activation is not None:
        assert method.activation.scale == "none"


@pytest.mark.parametrize("name", METHODS)
def test_every_knob_has_a_default(name: str) -> None:
    for knob in inspect.signature(METHODS[name]).parameters.values():
        assert knob.kind is inspect.Parameter.KEYWORD_ONLY
        assert knob.default is not inspect.Parameter.empty


def test_the_rows_are_those_of_the_papers() -> None:
    clip = ops.ClippedSTE(window=1.0)
    assert make_method("full_precision") == Method(None, None)
    assert make_method("identity") == Method(
        Quantizer(ops.Identity(), "layer"), Quantizer(ops.Identity())
    )
    assert make_method("ste") == Method(Quantizer(clip, "layer"), Quantizer(clip))
    assert make_method("bireal") == Method(Quantizer(clip, "filter"), Quantizer(ops.ApproxSign()))
    # Setting 3: n = 9 to 18, that is N = 10 to 19; k = 64 and a = 0.1 (sections 2.3 and 3.2).
    wave = ops.Fourier(omega=0.1, window=1.0, num_terms_start=10, num_terms_end=19)
    noise = Noise(0.1, "sine", shortcut_slope=0.1, reduction=64, reading="forward")
    assert make_method("fda") == Method(
        Quantizer(wave, "layer", noise), Quantizer(wave, noise=noise)
    )


def test_knobs_reach_the_rule_and_the_noise_module() -> None:
    method = make_method(
        "fda",
        scale="filter",
        omega=0.2,
        window=0.5,
        num_terms_start=2,
        num_terms_end=3,
        noise="backward",
        noise_scale=0.7,
        noise_shortcut="linear",
        noise_shortcut_slope=0.4,
        noise_reduction=8,
    )
    rule, noise = ops.Fourier(0.2, 0.5, 2, 3), Noise(0.7, "linear", 0.4, 8, "backward")
    assert method == Method(Quantizer(rule, "filter", noise), Quantizer(rule, noise=noise))
    clip = ops.ClippedSTE(0.5)
    assert make_method("ste", window=0.5, scale="none") == Method(
        Quantizer(clip, "none"), Quantizer(clip)
    )
    assert make_method("bireal", scale="layer").weight == Quantizer(ops.ClippedSTE(), "layer")
    assert make_method("identity", scale="none").weight == Quantizer(ops.Identity(), "none")


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


def test_lookup_gives_the_entry_of_any_table() -> None:
    assert lookup({"a": 1}, "a", "letter") == 1
    with pytest.raises(ValueError, match="there is no letter 'b': use one of a"):
        lookup({"a": 1}, "b", "letter")


def test_the_table_is_read_only() -> None:
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["fda"]
