"""Convolutions: three passes, on our kernels and on XLA's, against the literal sums in float64."""

import functools
import os
import re
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fda_jax import ops
from fda_jax.ops import native
from fda_jax.ops.convolution import _folded, _most_folded
from tests.conftest import REPOSITORY

SAME = ((1, 1), (1, 1))
needs_kernels = pytest.mark.skipif(
    native.kernels() is None, reason="no C++ compiler, or FDA_JAX_NATIVE=0"
)


def xla(x, w, stride, padding):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


def passes(convolution, x, w, stride, padding, seed=0):
    y, pull = jax.vjp(lambda x, w: convolution(x, w, stride, padding), x, w)
    g = jnp.asarray(np.random.default_rng(seed).standard_normal(y.shape), y.dtype)
    return y, *pull(g), g


compiled_passes = jax.jit(passes, static_argnums=(0, 3, 4))


def literal(x, w, g, stride, padding):
    """The sums of the docstring and their derivatives, in float64."""
    x, w, g = (np.asarray(array, np.float64) for array in (x, w, g))
    bordered = np.pad(x, ((0, 0), *padding, (0, 0)))
    y, dx, dw = np.zeros(g.shape), np.zeros(bordered.shape), np.zeros(w.shape)
    for k, j in np.ndindex(w.shape[:2]):
        rows = slice(k, k + stride * (g.shape[1] - 1) + 1, stride)
        columns = slice(j, j + stride * (g.shape[2] - 1) + 1, stride)
        seen = bordered[:, rows, columns]
        y += seen @ w[k, j]
        dx[:, rows, columns] += g @ w[k, j].T
        dw[k, j] = np.tensordot(seen, g, axes=((0, 1, 2), (0, 1, 2)))
    (top, _), (left, _) = padding
    return y, dx[:, top : top + x.shape[1], left : left + x.shape[2]], dw


def operands(batch, height, width, channels, filters, kernel, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, height, width, channels), np.float32)
    w = rng.standard_normal((*kernel, channels, filters), np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype)


def assert_equal_passes(x, w, stride, padding):
    *ours, g = compiled_passes(ops.convolve, x, w, stride, padding)
    for mine, reference in zip(ours, literal(x, w, g, stride, padding), strict=True):
        close(mine, reference)


def close(ours, reference):
    largest = np.max(np.abs(reference), initial=1.0)
    np.testing.assert_allclose(ours, reference, atol=2e-5 * largest, rtol=0)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((1, 2), (2, 1), 1, ((2, 0), (2, 0))),
        ((1, 2), (1, 2), 1, ((0, 0), (3, 0))),
        ((5, 6), (3, 3), 1, ((4, 0), (4, 3))),
        ((6, 5), (1, 3), 2, ((1, 2), (0, 4))),
    ],
)
def test_a_border_that_the_kernel_cannot_reach_over_is_a_border(size, kernel, stride, padding):
    # JAX 0.10's own convolution has numbers from beyond its arrays in the gradient here.
    for channels in (3, 16):
        assert_equal_passes(*operands(2, *size, channels, 8, kernel), stride, padding)


@given(
    batch=st.integers(1, 5),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    channels=st.sampled_from([1, 3, 8, 16, 24, 32, 48]),
    filters=st.sampled_from([1, 8, 16, 32, 48, 80]),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    seed=st.integers(0, 100),
)
# The same each time: there are rare geometries for which XLA's CPU compiler aborts.
@settings(max_examples=10, deadline=None, derandomize=True)
def test_all_three_passes_equal_the_literal_sums(
    batch, size, channels, filters, kernel, stride, padding, seed
):
    bordered = [s + sum(p) for s, p in zip(size, padding, strict=True)]
    if any(b < k for b, k in zip(bordered, kernel, strict=True)):
        return  # no output pixel
    x, w = operands(batch, *size, channels, filters, kernel, seed)
    assert_equal_passes(x, w, stride, padding)


@pytest.mark.parametrize(
    ("size", "channels", "filters", "stride", "side"),
    [
        (32, 16, 16, 1, 3),
        (16, 32, 64, 2, 3),
        (4, 128, 256, 1, 3),
        (30, 3, 64, 2, 7),
        (8, 64, 128, 1, 1),
        (7, 64, 272, 1, 3),
        (7, 384, 16, 1, 1),
        (13, 272, 32, 2, 3),
    ],
)
def test_the_shapes_of_the_networks_agree_with_the_literal_sums(
    size, channels, filters, stride, side
):
    padding = ((side // 2, side // 2),) * 2
    assert_equal_passes(*operands(3, size, size, channels, filters, (side, side)), stride, padding)


@given(
    batch=st.integers(1, 5),
    size=st.tuples(st.integers(3, 11), st.integers(3, 11)),
    channels=st.sampled_from([32, 48, 288]),
    filters=st.sampled_from([32, 48, 64]),
    padding=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    seed=st.integers(0, 100),
)
@settings(max_examples=10, deadline=None)
def test_wide_kernels_of_three_by_three_equal_the_literal_sums(
    batch, size, channels, filters, padding, seed
):
    assert_equal_passes(*operands(batch, *size, channels, filters, (3, 3), seed), 1, padding)


@pytest.mark.parametrize("in_gradient", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("size", "channels", "filters", "stride"),
    # Literal sums; of two strides; Winograd's; channels by the block; no kernel of ours.
    [(7, 16, 32, 1), (8, 16, 16, 2), (8, 32, 64, 1), (5, 300, 16, 1), (6, 3, 5, 1)],
)
def test_a_scale_multiplies_whole_sums_and_has_its_derivative(
    size, channels, filters, stride, shared, in_gradient
):
    x, w = operands(3, size, size, channels, filters, (3, 3))
    rng = np.random.default_rng(2)
    scale = jnp.asarray(rng.uniform(0, 2, () if shared else (filters,)), jnp.float32)
    if not shared:
        scale = scale.at[1].set(0)

    @jax.jit
    def every_pass(x, w, scale, g):
        y, pull = jax.vjp(
            lambda x, w, scale: ops.convolve(x, w, stride, SAME, scale, in_gradient), x, w, scale
        )
        return y, *pull(g)

    plain = ops.convolve(x, w, stride, SAME)
    g = jnp.asarray(rng.standard_normal(plain.shape), jnp.float32)
    y, dx, dw, dscale = every_pass(x, w, scale, g)
    sums, _, dw_without = literal(x, w, g, stride, SAME)
    by = np.asarray(scale, np.float64)
    close(y, sums * by)
    close(dx, literal(x, np.asarray(w, np.float64) * by, g, stride, SAME)[1])
    close(dw, dw_without * by if in_gradient else dw_without)
    if in_gradient:
        close(dscale, np.sum(np.asarray(g, np.float64) * sums, axis=None if shared else (0, 1, 2)))
    else:
        np.testing.assert_array_equal(dscale, np.zeros(scale.shape))
    np.testing.assert_array_equal(ops.convolve(x, w, stride, SAME, scale), plain * scale)


@pytest.mark.parametrize(("size", "channels"), [(8, 16), (8, 32)])
def test_a_scale_is_multiplied_by_after_the_sums_of_signs(size, channels):
    x, w = map(jnp.sign, operands(2, size, size, channels, 32, (3, 3)))
    scale = jnp.linspace(0.1, 0.2, 32)

    @jax.jit
    def forward(x, w, scale):
        return jax.vjp(lambda w: ops.convolve(x, w, 1, SAME, scale), w)[0]

    sums = literal(x, w, np.zeros((2, size, size, 32)), 1, SAME)[0].astype(np.float32)
    np.testing.assert_array_equal(forward(x, w, scale), sums * np.asarray(scale))


@needs_kernels
def test_a_scale_calls_its_kernel_once_for_each_of_a_batch_of_networks():
    x, w = operands(2, 8, 8, 16, 32, (3, 3))
    scales = jnp.stack([jnp.full(32, 2.0), jnp.linspace(0, 1, 32)])

    def gradients(w, scale):
        return jax.value_and_grad(
            lambda w, scale: jnp.sum(ops.convolve(x, w, 1, SAME, scale) ** 2), (0, 1)
        )(w, scale)

    assert native.SCALED_FORWARD in jax.jit(gradients).lower(w, scales[0]).as_text()
    together = jax.jit(jax.vmap(gradients))(jnp.stack([w, -w]), scales)
    for i, (one, scale) in enumerate([(w, scales[0]), (-w, scales[1])]):
        alone = jax.jit(gradients)(one, scale)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], together), alone, rtol=1e-5, atol=1e-3
        )


@pytest.mark.parametrize(("size", "channels"), [(16, 32), (8, 64), (7, 512)])
def test_products_of_signs_are_added_up_without_rounding(size, channels):
    x, w = map(jnp.sign, operands(2, size, size, channels, 32, (3, 3)))
    g = np.sign(np.random.default_rng(1).standard_normal((*x.shape[:3], 32), np.float32))

    @jax.jit
    def every_pass(x, w, g):
        y, pull = jax.vjp(lambda x, w: ops.convolve(x, w, 1, SAME), x, w)
        return y, *pull(g)

    for ours, reference in zip(every_pass(x, w, g), literal(x, w, g, 1, SAME), strict=True):
        np.testing.assert_array_equal(ours, reference)


@needs_kernels
def test_training_calls_our_kernels_and_inference_does_not():
    x, w = operands(2, 8, 8, 16, 16, (3, 3))
    plain = jax.jit(lambda x, w: ops.convolve(x, w, 1, SAME)).lower(x, w).as_text()
    assert "fda_jax_" not in plain
    training = jax.jit(lambda x, w: passes(ops.convolve, x, w, 1, SAME)).lower(x, w).as_text()
    for target in (native.FORWARD, native.INPUT_GRADIENT, native.WEIGHT_GRADIENT):
        assert target in training


@needs_kernels
def test_a_batch_of_networks_is_a_loop_over_each():
    x, w = operands(2, 8, 8, 16, 32, (3, 3))
    weights = jnp.stack([w, 2 * w, -w])
    together = jax.jit(jax.vmap(lambda w: passes(ops.convolve, x, w, 1, SAME)))(weights)
    for i, one in enumerate(weights):
        alone = compiled_passes(ops.convolve, x, one, 1, SAME)
        chex.assert_trees_all_equal(jax.tree.map(lambda a, i=i: a[i], together), alone)


@needs_kernels
def test_devices_share_the_kernels_and_their_gradients_add_up():
    devices = jax.local_device_count()
    x, w = operands(2 * devices, 8, 8, 16, 16, (3, 3))

    def gradient(x, w):
        return jax.grad(lambda w: jnp.sum(ops.convolve(x, w, 1, SAME) ** 2))(w)

    parts = jax.pmap(gradient, in_axes=(0, None))(x.reshape(devices, 2, 8, 8, 16), w)
    chex.assert_trees_all_close(jnp.sum(parts, 0), gradient(x, w), rtol=1e-4, atol=1e-3)


def test_half_precision_and_other_shapes_go_to_xla():
    x, w = operands(2, 6, 6, 16, 16, (3, 3), dtype=jnp.bfloat16)
    text = jax.jit(lambda x, w: passes(ops.convolve, x, w, 1, SAME)).lower(x, w).as_text()
    assert "fda_jax_" not in text
    chex.assert_trees_all_equal(passes(ops.convolve, x, w, 1, SAME), passes(xla, x, w, 1, SAME))


def test_shifted_products_are_the_gradient_of_many_channels(monkeypatch):
    monkeypatch.setattr(native, "kernels", lambda: None)
    x, w = operands(2, 7, 5, 128, 128, (3, 3))
    text = jax.jit(lambda x, w: passes(ops.convolve, x, w, 2, SAME)).lower(x, w).as_text()
    assert "fda_jax_" not in text
    assert text.count("stablehlo.dot_general") == 9
    assert_equal_passes(x, w, 2, SAME)


def test_a_nan_comes_through_every_pass():
    x, w = operands(1, 8, 8, 16, 16, (3, 3))
    y, dx, dw, _ = compiled_passes(
        ops.convolve, x.at[0, 3, 3, 5].set(jnp.nan), w.at[1, 1, 2, 2].set(jnp.nan), 1, SAME
    )
    assert np.isnan(y).any()
    assert np.isnan(dx).any()
    assert np.isnan(dw).any()


PROGRAM = """
import jax, jax.numpy as jnp, warnings
from fda_jax import ops
from fda_jax.ops import native
from fda_jax.ops.convolution import _folded, _most_folded
x, w = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
pad = ((1, 1), (1, 1))
print(float(jax.grad(lambda w: jnp.sum(ops.convolve(x, w, 1, pad)))(w).sum()), native.kernels())
"""


@pytest.fixture
def quick_compiler(tmp_path):
    """The compiler told last not to optimise: what is built, and where, is the same."""
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\nexec {native.compiler()} "$@" -O0\n')
    script.chmod(0o700)
    return str(script)


def run_program(tmp_path, **environment):
    settings = {"XDG_CACHE_HOME": str(tmp_path), **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    answer, _, state = done.stdout.partition(" ")
    return float(answer), state.strip(), done.stderr


@pytest.fixture(scope="module")
def expected():
    ones = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    return float(jnp.sum(jax.grad(lambda w: jnp.sum(xla(ones[0], w, 1, SAME)))(ones[1])))


@pytest.mark.slow
@needs_kernels
def test_the_kernels_are_built_once_and_a_damaged_library_is_built_again(
    tmp_path, expected, quick_compiler
):
    answer, state, _ = run_program(tmp_path, CXX=quick_compiler)
    assert (answer, state) == (expected, f"Kernels(lanes={native.kernels().lanes})")
    (library,) = (tmp_path / "fda_jax" / "native").glob("*.so")
    made = library.stat().st_mtime_ns
    assert run_program(tmp_path, CXX=quick_compiler)[0] == expected
    assert library.stat().st_mtime_ns == made
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])  # loading it would end the process
    answer, state, _ = run_program(tmp_path, CXX=quick_compiler)
    assert (answer, state[:7]) == (expected, "Kernels")
    names = {file.name for file in library.parent.iterdir()}
    assert names == {library.name, library.with_suffix(".sha256").name}
    assert library.stat().st_size == len(whole)


@pytest.mark.slow
def test_without_a_working_compiler_xla_answers_and_one_line_says_why(tmp_path, expected):
    answer, state, printed = run_program(tmp_path, CXX="/bin/false")
    assert (answer, state) == (expected, "None")
    assert "/bin/false could not build them" in printed
    assert printed.count("without our kernels") == 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FDA_JAX_NATIVE": "0"}, ""),
        ({"CXX": "no-such-compiler"}, "no-such-compiler could not build them: .*No such file"),
        ({"CXX": '"g++'}, "No closing quotation"),
        ({"PATH": ""}, "there is no C\\+\\+ compiler"),
    ],
)
def test_what_there_is_no_compiler_for_is_said_but_not_of_kernels_switched_off(
    environment, said, monkeypatch
):
    monkeypatch.delenv("CXX", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(native, "_kernels", functools.cache(native._kernels.__wrapped__))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert native.kernels() is None
    printed = [str(warning.message) for warning in caught]
    assert len(printed) == bool(said)
    assert all(re.search(f"without our kernels.*{said}", text) for text in printed)


@needs_kernels
def test_threads_that_ask_first_get_the_same_kernels(monkeypatch):
    called = []

    def kernels():
        called.append(1)
        time.sleep(0.05)
        return "kernels"

    monkeypatch.setattr(native, "_kernels", functools.cache(kernels))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: native.kernels(), range(4)))
    assert (found, called) == (["kernels"] * 4, [1])


@pytest.mark.parametrize(
    ("stride", "padding", "words"),
    [(0, SAME, "stride is 0"), (1, ((0, 0), (-1, 0)), "cuts pixels off")],
)
def test_what_no_convolution_has_is_refused(stride, padding, words):
    x, w = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    for call in (ops.convolve, lambda *args: jax.vjp(lambda w: ops.convolve(x, w, *args[2:]), w)):
        with pytest.raises(ValueError, match=words):
            call(x, w, stride, padding)


@pytest.mark.slow
@needs_kernels
def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path, expected, quick_compiler):
    (tmp_path / "fda_jax").write_text("a file where the folder should be")
    answer, state, _ = run_program(tmp_path, CXX=quick_compiler)
    assert answer == expected
    assert state.startswith("Kernels")


@needs_kernels
def test_a_kept_library_is_loaded_where_nothing_can_be_written(tmp_path, monkeypatch):
    def refused(*_args, **_kwargs):
        raise PermissionError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_is_whole", lambda _: True)
    for name in ("TemporaryFile", "TemporaryDirectory"):
        monkeypatch.setattr(native.tempfile, name, refused)
    monkeypatch.setattr(native.ctypes, "CDLL", str)
    assert native._load(native.compiler()).startswith(str(tmp_path / "fda_jax" / "native"))
    assert not list(tmp_path.iterdir())


# Prints a digest of the weight gradients of a narrow and of two wide layers.
GRADIENTS = """
import hashlib, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import jax, jax.numpy as jnp
from fda_jax.ops import convolve
digest = hashlib.sha256()
for batch, side, inputs, outputs in ((20, 8, 16, 32), (16, 16, 128, 256), (40, 4, 384, 512)):
    x = jax.random.normal(jax.random.key(0), (batch, side, side, inputs))
    w = jnp.zeros((3, 3, inputs, outputs))
    y, back = jax.vjp(lambda w: convolve(x, w, 1, ((1, 1), (1, 1))), w)
    digest.update(jax.jit(back)(jax.random.normal(jax.random.key(1), y.shape))[0].tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
@needs_kernels
@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores",
)
def test_the_bits_of_a_weight_gradient_do_not_depend_on_the_number_of_cores():
    answers = [
        subprocess.run(
            [sys.executable, "-c", GRADIENTS, cores],
            cwd=REPOSITORY,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for cores in "12"
    ]
    assert len(answers[0].strip()) == 64
    assert answers[0] == answers[1]


@given(
    fold=st.sampled_from([2, 4, 8]),
    kernel=st.tuples(st.integers(1, 3), st.integers(2, 5)),
    left=st.integers(0, 4),
    top=st.integers(0, 2),
    channels=st.integers(1, 3),
    filters=st.integers(1, 3),
)
@settings(max_examples=8, deadline=None)
def test_a_convolution_of_folded_pixels_is_the_convolution(
    fold, kernel, left, top, channels, filters
):
    left = min(left, kernel[1] - 1)
    padding = ((top, 1), (left, kernel[1] - 1 - left))
    rng = np.random.default_rng(fold)
    x = jnp.asarray(rng.standard_normal((2, 4, 2 * fold, channels), np.float32))
    w = jnp.asarray(rng.standard_normal((*kernel, channels, filters), np.float32))

    def folded(x, w, stride, padding):
        return _folded(x, w, fold=fold, padding=padding)

    y, dx, dw, g = compiled_passes(folded, x, w, 1, padding)
    for got, wanted in zip((y, dx, dw), literal(x, w, g, 1, padding), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_pixels_are_folded_up_to_a_tile_of_channels_and_only_where_the_width_stays():
    three, same = (3, 3), SAME
    assert _most_folded((8, 32, 32, 16), (*three, 16, 16), 1, same) == 4
    assert _most_folded((8, 16, 16, 32), (*three, 32, 32), 1, same) == 2
    assert _most_folded((8, 32, 32, 3), (*three, 3, 16), 1, same) == 4
    assert _most_folded((8, 8, 8, 64), (*three, 64, 64), 1, same) == 1
    assert _most_folded((8, 32, 32, 16), (*three, 16, 32), 2, same) == 1
    assert _most_folded((8, 31, 31, 16), (*three, 16, 16), 1, same) == 1
    assert _most_folded((8, 32, 32, 16), (*three, 16, 16), 1, ((0, 0), (0, 0))) == 1


def test_a_mapped_convolution_makes_no_groups_and_gives_what_single_ones_give():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 2, 8, 8, 4), np.float32))
    w = jnp.asarray(rng.standard_normal((3, 3, 3, 4, 4), np.float32))

    def loss(x, w):
        return jnp.sum(jnp.sin(ops.convolve(x, w, 1, SAME)))

    mapped = jax.vmap(jax.value_and_grad(loss, (0, 1)))
    text = jax.jit(mapped).trace(x, w).lower(lowering_platforms=("cuda",)).as_text()
    assert "feature_group_count = 1" in text
    assert "feature_group_count = 3" not in text
    assert "batch_group_count = 3" not in text
    alone = jax.jit(jax.value_and_grad(loss, (0, 1)))
    wanted = jax.tree.map(lambda *leaves: np.stack(leaves), *map(alone, x, w))
    chex.assert_trees_all_close(jax.jit(mapped)(x, w), wanted, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_filters_that_do_not_fill_a_register_are_refused_and_not_written_over():
    """A shipped network may have been exported on another processor."""
    lanes = native.kernels().lanes
    x, w = operands(1, 4, 4, 3, lanes + 1, (3, 3))
    shape = jax.ShapeDtypeStruct((1, 4, 4, lanes + 1), jnp.float32)
    call = jax.ffi.ffi_call(native.FORWARD, shape)
    with pytest.raises(jax.errors.JaxRuntimeError, match="do not fill the registers"):
        call(x, w, stride=np.int64(1), top=np.int64(1), left=np.int64(1)).block_until_ready()
