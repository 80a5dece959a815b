"""What BiPer's row is made of, and its penalty against float64 numpy."""

import jax
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers import BinaryConv, make_method
from fda_jax.layers.sines import SinePenalty

W = (0.2 * np.random.default_rng(0).normal(size=(3, 3, 2, 4))).astype(np.float32)
ANGLE = 20.0 * W.astype(np.float64)


def test_the_penalty_is_the_mean_squared_sine_with_its_gradient() -> None:
    value, of_w = jax.value_and_grad(SinePenalty(20.0, 0.25))(W, 0.5)
    np.testing.assert_allclose(value, 0.25 * np.mean(0.5 - np.cos(2 * ANGLE) / 2), rtol=1e-5)
    expected = 0.25 * 20.0 * np.sin(2 * ANGLE) / W.size
    np.testing.assert_allclose(of_w, expected, rtol=0, atol=1e-5)


def test_the_penalty_is_least_where_the_sine_is_zero_and_not_at_its_signs() -> None:
    penalty = SinePenalty(20.0, 1.0)
    at = lambda angle: float(penalty(np.full(3, angle / 20.0, np.float32), 0.5))  # noqa: E731
    assert at(np.pi) == pytest.approx(0, abs=1e-6)
    assert at(np.pi / 2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("stage", ops.periodic.STAGES)
def test_a_layer_multiplies_sines_or_their_signs_and_scales_its_output(stage: str) -> None:
    layer = BinaryConv(4, (1, 1), method=make_method("biper", stage=stage))
    a, w, scale = np.ones((1, 1, 2, 2), np.float32), W[:1, :1], np.arange(1, 5, dtype=np.float32)
    a[0, 0, 1] = [-0.3, 2.0]
    params = {"params": {"latent_kernel": w, "output": {"channel": scale}}}
    waves = np.sin(20.0 * w[0, 0].astype(np.float64))
    values = waves if stage == "real" else np.where(waves > 0, 1, -1)
    expected = scale * (np.where(a > 0, 1, -1) @ values)
    np.testing.assert_allclose(layer.apply(params, a), expected, rtol=1e-5, atol=1e-5)


def test_the_binary_stage_alone_has_one_before_it() -> None:
    assert make_method("biper", stage="real").predecessor == ""
    assert "stage 'real'" in make_method("biper").predecessor


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"regularizer": -1.0}, r"regularizer is -1\.0: use a number >= 0"),
        ({"frequency": 0.0}, r"frequency is 0\.0"),
        ({"stage": "first"}, "stage is 'first': use one of real, binary"),
    ],
)
def test_settings_that_cannot_be_are_refused(knobs, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_method("biper", **knobs)
