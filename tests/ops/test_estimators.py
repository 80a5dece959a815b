"""Laws of every rule: its slope is the derivative of its twin, and nothing else is new.

A new rule of `ESTIMATORS` is tested by being there; only its slope in plain Python is asked for,
its kinks, and its forward map where that is not the sign.
"""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.ops import (
    DSQ,
    EDE,
    ESTIMATORS,
    ClippedSTE,
    Fourier,
    Periodic,
    ReSTE,
    RotationAware,
    SigmoidSum,
    SignSwish,
    binarize,
)

RULES = [
    *(make() for make in ESTIMATORS.values()),
    Fourier(window=math.inf),
    Fourier(omega=0.3, num_terms_start=2, num_terms_end=5),
    # A power of two, so that the edge is the same number in float32.
    ClippedSTE(window=0.5),
    EDE(window=0.5),
    RotationAware(sharp=True),
    Periodic(stage="real"),
]
# Without a limit at infinity.
OSCILLATING = {Fourier(window=math.inf), Periodic(), Periodic(stage="real")}
PROGRESS = (0.0, 0.37, 1.0)
SIZE = 256
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)
# For laws that no last digit decides: XLA takes longer to optimise than the program to run.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def fourier_slope(rule: Fourier, x: float, progress: float) -> float:
    """Eq. 10 as a sum, with as many terms as setting 3 asks for."""
    stages = rule.num_terms_end - rule.num_terms_start + 1
    num_terms = rule.num_terms_start + min(int(progress * stages), stages - 1)
    if abs(x) > rule.window:
        return 0.0
    terms = (math.cos((2 * i + 1) * rule.omega * x) for i in range(num_terms))
    return 4 * rule.omega / math.pi * math.fsum(terms)


def steepness(rule: EDE | RotationAware, progress: float) -> float:
    """t, from `t_start` to `t_end` on a line of logarithms."""
    low, high = math.log10(rule.t_start), math.log10(rule.t_end)
    t = 10 ** (low + (high - low) * progress)
    return max(t, 1) if getattr(rule, "sharp", False) else t


def ede_slope(rule: EDE, x: float, progress: float) -> float:
    t = steepness(rule, progress)
    return 0.0 if abs(x) > rule.window else max(1 / t, 1) * t * (1 - math.tanh(t * x) ** 2)


def rotation_aware_slope(rule: RotationAware, x: float, progress: float) -> float:
    t = steepness(rule, progress)
    return max(0.0, max(1 / t, 1) * (math.sqrt(2) * t - t**2 * abs(x)))


def reste_slope(rule: ReSTE, x: float, progress: float) -> float:
    o = 1 + (1 - math.cos(math.pi * progress / 2)) * (rule.power_end - 1)
    if abs(x) <= rule.inner:
        return rule.inner ** (1 / o) / rule.inner
    return 1 / o * abs(x) ** ((1 - o) / o) if abs(x) <= rule.window else 0.0


def sign_swish_slope(rule: SignSwish, x: float, progress: float) -> float:
    u = rule.beta * x
    return rule.beta * (2 - u * math.tanh(u / 2)) / (1 + math.cosh(u))


def dsq_slope(rule: DSQ, x: float, progress: float) -> float:
    """One interval from l = -window to u = window."""
    k = math.log(2 / rule.alpha - 1) / (2 * rule.window)
    inside = abs(x) <= rule.window
    return k / (1 - rule.alpha) * (1 - math.tanh(k * x) ** 2) if inside else 0.0


def temperature(rule: SigmoidSum, progress: float) -> float:
    return rule.temperature_start * (1 - progress) + rule.temperature_end * progress


def sigmoid_sum_slope(rule: SigmoidSum, x: float, progress: float) -> float:
    """2 T s (1 - s) with s the logistic function, whose values at x and -x add up to 1."""
    t = temperature(rule, progress)
    return 2 * t * np.exp(-np.logaddexp(0, t * x) - np.logaddexp(0, -t * x))


# Slopes in plain Python: (rule, x, progress) -> float.
SLOPES = {
    "fourier": fourier_slope,
    "identity": lambda rule, x, progress: 1.0,
    "clipped_ste": lambda rule, x, progress: 1.0 if abs(x) <= rule.window else 0.0,
    "approx_sign": lambda rule, x, progress: 2 - 2 * abs(x) if abs(x) <= 1 else 0.0,
    "ede": ede_slope,
    "rotation_aware": rotation_aware_slope,
    "reste": reste_slope,
    "sign_swish": sign_swish_slope,
    "dsq": dsq_slope,
    "sigmoid_sum": sigmoid_sum_slope,
    "periodic": lambda rule, x, progress: rule.frequency * math.cos(rule.frequency * x),
}
# Sizes of x where a twin has a kink, beside 0, 1 and the window: rule -> floats.
KINKS = {
    "rotation_aware": lambda rule: [math.sqrt(2) / steepness(rule, p) for p in PROGRESS],
    "reste": lambda rule: [rule.inner],
}


def plain_sign(x: float) -> float:
    return 1.0 if x > 0 else -1.0


def periodic_forward(rule: Periodic, x: float, progress: float) -> float:
    if math.isinf(x):
        return math.nan
    wave = math.sin(rule.frequency * x)
    return wave if rule.stage == "real" else plain_sign(wave)


# Forward maps in plain Python that are not the sign: (rule, x, progress) -> float.
FORWARDS = {
    "sigmoid_sum": lambda rule, x, progress: (
        plain_sign(x) if progress == 1 else math.tanh(temperature(rule, progress) * x / 2)
    ),
    "periodic": periodic_forward,
}


def name_of(rule) -> str:
    return next(name for name, make in ESTIMATORS.items() if type(rule) is make)


def points(rule) -> np.ndarray:
    """Points on both sides of every kink, but 1e-3 away from each."""
    near = [-0.013, -0.007, -0.002, 0.002, 0.007, 0.013]
    x = np.concatenate([np.linspace(-3, 3, 237), near, [-40.0, -7.3, 9.1, 31.4]])
    kinks = [0.0, 1.0, getattr(rule, "window", 1.0), *KINKS.get(name_of(rule), lambda _: [])(rule)]
    x = x[np.all([np.abs(np.abs(x) - kink) > 1e-3 for kink in kinks], axis=0)]
    # Where float32 still has digits for the phase.
    return x[np.abs(x) * getattr(rule, "frequency", 0.0) < 70]


def cotangents(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@functools.cache
def compiled(rule):
    """Value, both gradients, and the twin's; compiled once, for arrays of `SIZE`."""

    def all_of_it(x, g, progress):
        value, pullback = jax.vjp(lambda x, progress: binarize(x, rule, progress), x, progress)
        of_twin = jax.vjp(lambda x: rule.twin(x, progress), x)[1](g)[0]
        return value, *pullback(g), of_twin

    return jax.jit(all_of_it)


def run(rule, x, g, progress) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """(value, gradient of x, gradient of progress, the twin's gradient of x).

    At float32 points of any number <= `SIZE`.
    """
    padded = np.full((2, SIZE), 0.5, np.float32)
    padded[0, : len(x)], padded[1, : len(x)] = x, g
    value, gradient, of_progress, of_twin = map(
        np.asarray, compiled(rule)(*padded, np.float32(progress))
    )
    return value[: len(x)], gradient[: len(x)], float(of_progress), of_twin[: len(x)]


def test_every_rule_has_a_slope_in_plain_python() -> None:
    assert SLOPES.keys() == ESTIMATORS.keys()


@every_rule
def test_the_forward_pass_is_the_sign_or_what_its_rule_states(rule) -> None:
    x = np.concatenate([points(rule), [0.0, -0.0, np.inf, -np.inf]]).astype(np.float32)
    stated = FORWARDS.get(name_of(rule), lambda rule, x, progress: plain_sign(x))
    formula = np.vectorize(stated, otypes=[float], excluded=[0])
    for progress in PROGRESS:
        expected = formula(rule, x.astype(np.float64), progress)
        two_valued = np.all(np.isin(np.nan_to_num(expected, nan=1.0), [-1.0, 1.0]))
        atol = 0 if two_valued else 1e-5
        np.testing.assert_allclose(run(rule, x, 1.0, progress)[0], expected, rtol=0, atol=atol)


# BiPer's first stage trains real weights and has no inference of its own.
@pytest.mark.parametrize("rule", [r for r in RULES if r != Periodic(stage="real")], ids=repr)
def test_the_forward_pass_is_two_valued_at_inference(rule) -> None:
    assert {*run(rule, points(rule), 1.0, 1.0)[0].tolist()} == {-1.0, 1.0}


@every_rule
def test_backward_is_the_derivative_of_the_twin(rule) -> None:
    x = points(rule).astype(np.float32)
    g = cotangents(x.shape)
    for progress in PROGRESS:
        _, ours, _, expected = run(rule, x, g, progress)
        atol = 1e-6 * np.max(np.abs(expected))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


@every_rule
def test_the_slope_is_the_numerical_derivative_of_the_twin(rule) -> None:
    step = 3e-7
    with jax.enable_x64(True):
        x = jnp.asarray(points(rule))
        assert x.dtype == jnp.float64

        @quick
        def both(x, progress):
            rise = rule.twin(x + step, progress) - rule.twin(x - step, progress)
            return rise / (2 * step), rule.slope(x, progress)

        for progress in PROGRESS:
            numerical, slope = both(x, progress)
            atol = 1e-7 * np.max(np.abs(slope))
            np.testing.assert_allclose(numerical, slope, rtol=0, atol=atol)


@every_rule
def test_the_slope_is_the_formula_of_its_paper(rule) -> None:
    formula = np.vectorize(SLOPES[name_of(rule)], otypes=[float], excluded=[0])
    # The edge of a window belongs to it.
    edge = getattr(rule, "window", 1.0)
    edges = [edge, -edge] if math.isfinite(edge) else []
    x = np.concatenate([points(rule), [0.0], edges]).astype(np.float32)
    for progress in PROGRESS:
        expected = formula(rule, x.astype(np.float64), progress)
        slope = run(rule, x, 1.0, progress)[1]
        np.testing.assert_allclose(slope, expected, rtol=0, atol=2e-5 * np.max(expected))


@pytest.mark.parametrize("rule", [r for r in RULES if r not in OSCILLATING], ids=repr)
def test_the_slope_is_a_number_however_far_out(rule) -> None:
    far = [-np.inf, -3e38, -1e9, 1e9, 3e38, np.inf]
    for progress in PROGRESS:
        value, slope, _, of_twin = run(rule, far, 1.0, progress)
        np.testing.assert_array_equal(np.sign(value), np.sign(far))
        assert np.all(np.isfinite(slope))
        np.testing.assert_array_equal(slope, of_twin)


@every_rule
def test_the_backward_pass_is_linear_in_the_cotangent(rule) -> None:
    x = points(rule).astype(np.float32)
    first, second = cotangents((2, len(x)))
    together = run(rule, x, 3 * first - second, 0.37)[1]
    apart = 3 * run(rule, x, first, 0.37)[1] - run(rule, x, second, 0.37)[1]
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5)


@every_rule
def test_not_a_number_goes_through_in_both_directions(rule) -> None:
    value, gradient, *_ = run(rule, [np.nan, 0.3, 40.0], [1.0, np.nan, np.nan], 1.0)
    np.testing.assert_array_equal(np.isnan(value), [True, False, False])
    # Beyond a window too: 0 times NaN is NaN.
    np.testing.assert_array_equal(np.isnan(gradient[1:]), True)


@every_rule
def test_the_gradient_of_sixteen_bit_inputs_is_computed_in_float32_and_cast(rule) -> None:
    x = jnp.asarray(points(rule)).astype(jnp.bfloat16)
    g = jnp.asarray(cotangents(x.shape)).astype(jnp.bfloat16)

    @quick
    def narrow_and_wide(x, g):
        value, pullback = jax.vjp(lambda x: binarize(x, rule, 0.37), x)
        wide = jnp.float32
        slope = rule.slope(x.astype(wide), jnp.float32(0.37))
        return value, pullback(g)[0], g.astype(wide) * slope

    value, gradient, expected = narrow_and_wide(x, g)
    assert value.dtype == gradient.dtype == jnp.bfloat16
    chex.assert_trees_all_equal(gradient, expected.astype(jnp.bfloat16))


@every_rule
def test_transformations_do_not_change_the_gradient(rule) -> None:
    x = points(rule)[:234].reshape(3, -1).astype(np.float32)
    g = cotangents(x.shape)
    progress = 0.37

    def scalar(x, g):
        return jnp.sum(g * binarize(x, rule, progress))

    def scanned(x, g):
        return jax.lax.scan(lambda s, xs: (s + scalar(*xs), None), 0.0, (x, g))[0]

    @jax.jit
    def every_way(x, g):
        gradient = jax.grad(scalar)
        return (
            gradient(x, g),
            jax.vmap(gradient)(x, g),
            jax.vmap(jax.vmap(gradient))(x, g),
            jax.grad(lambda x: jax.vmap(scalar)(x, g).sum())(x),
            jax.grad(scanned)(x, g),
            jax.grad(jax.checkpoint(scalar))(x, g),
        )

    plain = run(rule, x.ravel(), g.ravel(), progress)[1].reshape(x.shape)
    atol = 1e-6 * np.max(np.abs(plain))
    for gradient in every_way(x, g):
        np.testing.assert_allclose(gradient, plain, rtol=0, atol=atol)


@every_rule
def test_forward_mode_is_refused(rule) -> None:
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: binarize(x, rule), (jnp.ones(2),), (jnp.ones(2),))


@every_rule
def test_one_trace_serves_a_whole_run(rule) -> None:
    chex.clear_trace_counter()

    def gradient(x, progress):
        return jax.vjp(lambda x: binarize(x, rule, progress), x)[1](x)

    once = jax.jit(chex.assert_max_traces(gradient, n=1))
    for progress in np.linspace(0, 1, 12):
        once(jnp.ones(()), progress)


@every_rule
def test_progress_gets_no_gradient(rule) -> None:
    assert run(rule, points(rule), 1.0, 0.4)[2] == 0


@every_rule
def test_rules_are_equal_by_value_and_frozen(rule) -> None:
    copy = dataclasses.replace(rule)
    assert copy is not rule
    assert copy == rule
    assert hash(copy) == hash(rule)
    for field in dataclasses.fields(rule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, field.name, 1)


def test_rules_with_other_settings_are_other_rules() -> None:
    assert len({*RULES}) == len(RULES)
    assert Fourier() != Fourier(omega=0.2)


@pytest.mark.parametrize(
    ("rule", "first", "last"),
    [
        pytest.param(Fourier(num_terms_start=10, num_terms_end=10), 10, 10, id="setting 1"),
        pytest.param(Fourier(num_terms_start=2), 2, 19, id="setting 2"),
        pytest.param(Fourier(), 10, 19, id="setting 3"),
    ],
)
def test_every_number_of_terms_has_an_equal_share_of_the_run(
    rule: Fourier, first: int, last: int
) -> None:
    stages = last - first + 1
    # The middle of each of 100 intervals a stage, so that no float32 rounding is at stake.
    progress = (np.arange(100 * stages) + 0.5) / (100 * stages)
    counts = np.asarray(rule.num_terms(progress))
    np.testing.assert_array_equal(counts, np.repeat(np.arange(first, last + 1), 100))
    assert rule.num_terms(0.0) == first
    assert rule.num_terms(1.0) == last


@pytest.mark.parametrize("progress", [-0.5, 1.5])
def test_the_number_of_terms_stays_in_its_range(progress: float) -> None:
    assert Fourier().num_terms(progress) == (10 if progress < 0 else 19)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"num_terms_start": 5, "num_terms_end": 4}, "num_terms_end is 4.*num_terms_end >= 5"),
        ({"num_terms_start": 0}, "num_terms is 0.*>= 1"),
        ({"omega": 0.0}, r"omega is 0\.0.*0\.1"),
        ({"omega": math.nan}, r"omega is nan.*0\.1"),
        ({"window": 0.0}, r"window is 0\.0.*inf"),
        ({"window": math.nan}, "window is nan.*inf"),
    ],
)
def test_fourier_refuses_settings_out_of_range(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fourier(**knobs)


@pytest.mark.parametrize("window", [0.0, -1.0, math.nan])
def test_a_clip_needs_a_window(window: float) -> None:
    with pytest.raises(ValueError, match=rf"window is {window}.*use e\.g\. 1\.0"):
        ClippedSTE(window)


@pytest.mark.parametrize(
    ("make", "knobs", "message"),
    [
        (EDE, {"t_start": 0.0}, r"t_start is 0\.0.*0\.001"),
        (EDE, {"t_end": math.inf}, r"t_end is inf.*10\.0"),
        (EDE, {"window": -1.0}, r"window is -1\.0"),
        (RotationAware, {"t_start": math.nan}, r"t_start is nan.*0\.01"),
        (RotationAware, {"t_end": -1.0}, r"t_end is -1\.0.*10\.0"),
        (ReSTE, {"power_end": 0.5}, r"power_end is 0\.5.*>= 1"),
        (ReSTE, {"window": 0.0}, r"window is 0\.0"),
        (ReSTE, {"inner": 2.0}, r"inner is 2\.0.*\(0, 1\.5\).*0\.1"),
        (SignSwish, {"beta": 0.0}, r"beta is 0\.0.*5\.0"),
        (DSQ, {"alpha": 1.0}, r"alpha is 1\.0.*0\.2"),
        (DSQ, {"window": math.inf}, r"window is inf.*1\.0"),
        (SigmoidSum, {"temperature_start": 0.0}, r"temperature_start is 0\.0"),
        (SigmoidSum, {"temperature_end": math.nan}, "temperature_end is nan"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(make: type, knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**knobs)


@pytest.mark.parametrize("window", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.7])
def test_the_soft_quantizer_meets_the_sign_at_the_ends_of_its_interval(
    alpha: float, window: float
) -> None:
    ends = DSQ(alpha, window).twin(jnp.array([-window, window]), jnp.float32(0.0))
    np.testing.assert_allclose(ends, [-1.0, 1.0], rtol=1e-6)


def test_the_sign_swish_overshoots_where_its_slope_turns_negative() -> None:
    # The root of u tanh(u / 2) = 2.
    root, rule, progress = 2.3993572805, SignSwish(beta=2.0), jnp.float32(0.0)
    x = jnp.array([root - 1e-3, root + 1e-3]) / rule.beta
    assert np.sign(rule.slope(x, progress)).tolist() == [1.0, -1.0]
    assert rule.twin(jnp.float32(root / rule.beta), progress) > 1.0


def test_the_rectified_estimator_starts_as_the_identity_in_its_window() -> None:
    x = jnp.linspace(-1.5, 1.5, 13)
    np.testing.assert_allclose(ReSTE().twin(x, jnp.float32(0.0)), x, rtol=1e-6)
    np.testing.assert_allclose(
        ReSTE().twin(jnp.array([-1.0, 0.2, 0.512]), jnp.float32(1.0)),
        [-1.0, 0.2 ** (1 / 3), 0.8],
        rtol=1e-5,
    )


def test_the_error_of_the_decay_estimator_decays() -> None:
    x = jnp.array([-2.0, -0.4, 0.3, 1.1])
    error = [
        float(jnp.mean(jnp.abs(EDE().twin(x, jnp.float32(p)) - jnp.sign(x)))) for p in (0.75, 1.0)
    ]
    np.testing.assert_allclose(EDE().twin(x, jnp.float32(0.0)), x, rtol=1e-5)
    assert error[1] < 0.01 < error[0]
