"""Convolutions of bits: exactly the sums that define them, whatever the shape and the processor."""

import ctypes
import dataclasses
import platform
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fda_jax import ops
from fda_jax.ops import native

pytestmark = pytest.mark.skipif(
    native.kernels() is None, reason="no C++ compiler, or FDA_JAX_NATIVE=0"
)
SAME = ((1, 1), (1, 1))
# Instructions that a count of bits does without, and with it the compiler here.
WITHOUT = ["avx512vpopcntdq", "avx512f", "avx2", "avx"]


def operands(batch, height, width, channels, filters, kernel, seed=0):
    """Activations with zeros among them, and signs of weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, height, width, channels), np.float32)
    x[rng.random(x.shape) < 0.1] = 0.0
    return x, rng.random((*kernel, channels, filters)) < 0.5


def literal(x, w, stride, padding):
    """The sums of the docstring in float64."""
    bordered = np.pad(np.where(x > 0, 1.0, -1.0), ((0, 0), *padding, (0, 0)))
    height, width = w.shape[:2]
    rows = (bordered.shape[1] - height) // stride + 1
    columns = (bordered.shape[2] - width) // stride + 1
    y = np.zeros((len(x), rows, columns, w.shape[3]))
    for k, j in np.ndindex(height, width):
        seen = bordered[
            :, k : k + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride
        ]
        y += seen @ w[k, j].astype(np.float64)
    return y


def of_ones(is_positive):
    """A kernel of -1 and 1, as numbers and as bits."""
    one = np.ones(is_positive.shape[-1], np.float32)
    return np.where(is_positive, 1.0, -1.0), ops.sign_kernel(is_positive, -one, one)


convolve = jax.jit(ops.convolve_signs, static_argnums=(2, 3))


@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    channels=st.sampled_from([1, 3, 16, 31, 32, 33, 64, 100]),
    filters=st.sampled_from([1, 7, 16, 17, 32, 48, 64, 100]),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_sums_of_signs_are_whole_and_exact(
    batch, size, channels, filters, kernel, stride, padding, seed
):
    for axis in (0, 1):
        if size[axis] + sum(padding[axis]) < kernel[axis]:
            return
    x, is_positive = operands(batch, *size, channels, filters, kernel, seed)
    w, bits = of_ones(is_positive)
    np.testing.assert_array_equal(
        convolve(x, bits, stride, padding), literal(x, w, stride, padding)
    )


@pytest.mark.parametrize(
    ("shape", "padding"),
    [
        ((40, 8, 8, 32, 33, (3, 3)), SAME),  # images are dealt out
        ((1, 40, 40, 40, 40, (3, 3)), SAME),  # rows of one
        ((1, 1, 1, 20_000, 1030, (1, 1)), ((0, 0), (0, 0))),  # filters of a product
    ],
)
def test_work_for_several_threads_is_dealt_out_without_gaps(shape, padding):
    x, is_positive = operands(*shape)
    x[-1, -1, 0, 3] = np.nan
    w, bits = of_ones(is_positive)
    y = np.asarray(convolve(x, bits, 1, padding))
    seen = np.isnan(y)
    of_nan = np.zeros(y.shape, bool)
    of_nan[-1, max(0, y.shape[1] - 2) :, :2] = True
    np.testing.assert_array_equal(seen, of_nan)
    np.testing.assert_array_equal(y[~seen], literal(x, w, 1, padding)[~seen])


def test_a_filter_may_have_any_two_values():
    x, is_positive = operands(2, 6, 5, 40, 20, (3, 3))
    rng = np.random.default_rng(1)
    low = rng.standard_normal(20).astype(np.float32)
    high = low + rng.random(20).astype(np.float32)
    high[3] = low[3]  # or one
    w = np.where(is_positive, high, low)
    y = convolve(x, ops.sign_kernel(is_positive, low, high), 1, SAME)
    expected = literal(x, w, 1, SAME)
    np.testing.assert_allclose(y, expected, atol=1e-6 * np.abs(expected).max())


def test_two_opposite_values_need_nothing_but_their_size():
    _, is_positive = operands(1, 3, 3, 4, 8, (3, 3))
    scale = np.random.default_rng(0).random(8).astype(np.float32)
    kernel = ops.sign_kernel(is_positive, -scale, scale)
    np.testing.assert_array_equal(kernel.spread, scale)
    np.testing.assert_array_equal(kernel.middle, 0.0)


def test_a_product_of_vectors_takes_any_axes_in_front():
    x, is_positive = operands(2, 3, 5, 70, 33, (1, 1))
    w, bits = of_ones(is_positive)
    y = jax.jit(ops.multiply_signs)(x, bits)
    np.testing.assert_array_equal(y, np.where(x > 0, 1.0, -1.0) @ w[0, 0])
    np.testing.assert_array_equal(jax.jit(ops.multiply_signs)(x[0, 0], bits), y[0, 0])


def test_in_16_bits_it_is_the_product_of_rounded_operands_rounded_once():
    x, is_positive = operands(1, 6, 6, 40, 16, (3, 3))
    scale = np.random.default_rng(0).random(16).astype(np.float32)
    low, high = -scale, scale
    rounded = np.where(is_positive, high, low).astype(jnp.bfloat16)
    y = convolve(jnp.asarray(x, jnp.bfloat16), ops.sign_kernel(is_positive, low, high), 1, SAME)
    expected = literal(x, rounded.astype(np.float64), 1, SAME).astype(jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), expected.astype(np.float32))


def test_nan_reaches_the_windows_that_see_it_and_no_other():
    x, is_positive = operands(2, 7, 7, 40, 20, (3, 3))
    x[1, 2, 4, 39] = np.nan
    y = np.asarray(convolve(x, of_ones(is_positive)[1], 1, SAME))
    expected = np.zeros(y.shape, bool)
    expected[1, 1:4, 3:6] = True
    np.testing.assert_array_equal(np.isnan(y), expected)


def test_a_kernel_of_other_channels_is_refused():
    x, is_positive = operands(1, 3, 3, 40, 8, (3, 3))
    bits = of_ones(is_positive)[1]
    with pytest.raises(ValueError, match=r"images have 20 channels, but the kernel is of 33 to 64"):
        convolve(x[..., :20], bits, 1, SAME)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"spread": np.ones(4_000_000, np.float32)}, "4000000 filters have shape"),
        ({"middle": np.zeros(7, np.float32)}, "middle of 7"),
        ({"words": np.zeros((1, 3, 3, 1, 8), np.uint32)}, "8 filters have shape"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(parts, words):
    x, is_positive = operands(1, 3, 3, 8, 8, (3, 3))
    kernel = dataclasses.replace(of_ones(is_positive)[1], **parts)
    with pytest.raises(ValueError, match=words):
        convolve(x, kernel, 1, SAME)


def test_a_program_that_calls_the_kernel_with_other_parts_is_refused():
    x, is_positive = operands(1, 3, 3, 8, 8, (3, 3))
    kernel = of_ones(is_positive)[1]
    call = jax.ffi.ffi_call(native.SIGNS, jax.ShapeDtypeStruct((1, 3, 3, 8), jnp.float32))
    sizes = dict.fromkeys(("height", "width"), np.int64(3))
    places = dict.fromkeys(("stride", "top", "left"), np.int64(1))
    with pytest.raises(jax.errors.JaxRuntimeError, match="do not belong together"):
        call(
            jnp.asarray(x > 0, jnp.int8), kernel.words, kernel.spread[:4], kernel.middle,
            **sizes, **places,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("stride", "padding", "words"),
    [(0, SAME, "stride is 0"), (1, ((0, 0), (-1, 1)), "cuts"), (1, ((0, 0), (0, 0)), "smaller")],
)
def test_a_geometry_that_cannot_be_is_refused(stride, padding, words):
    x, is_positive = operands(1, 2, 3, 8, 8, (3, 3))
    with pytest.raises(ValueError, match=words):
        convolve(x, of_ones(is_positive)[1], stride, padding)


def test_of_no_images_there_are_no_results():
    x, is_positive = operands(1, 3, 3, 8, 8, (3, 3))
    assert convolve(x[:0], of_ones(is_positive)[1], 1, SAME).shape == (0, 3, 3, 8)


def test_infinities_have_signs():
    x, is_positive = operands(1, 3, 3, 8, 8, (3, 3))
    w, bits = of_ones(is_positive)
    x[0, 0, 0], x[0, 1, 1] = np.inf, -np.inf
    np.testing.assert_array_equal(convolve(x, bits, 1, SAME), literal(x, w, 1, SAME))


def test_there_is_no_derivative_and_it_says_so():
    x, is_positive = operands(1, 3, 3, 8, 8, (3, 3))
    bits = of_ones(is_positive)[1]
    with pytest.raises(TypeError, match=r"no derivative: train with `binarize`"):
        jax.grad(lambda x: jnp.sum(ops.convolve_signs(x, bits, 1, SAME)))(jnp.asarray(x))


def test_a_batch_of_calls_is_a_call_for_each():
    x, is_positive = operands(3, 4, 4, 8, 8, (3, 3))
    bits = of_ones(is_positive)[1]
    mapped = jax.vmap(lambda image: ops.convolve_signs(image[None], bits, 1, SAME)[0])(x)
    np.testing.assert_array_equal(mapped, convolve(x, bits, 1, SAME))


def of_this_kernel_alone(folder):
    """A source without the other kernels, which would take longer to compile."""
    pattern = rf"XLA_FFI_DEFINE_HANDLER_SYMBOL\({native.SIGNS},.*?;\n"
    (handler,) = re.findall(pattern, native.SOURCE.read_text(), re.DOTALL)
    source = folder / "signs.cc"
    source.write_text(f'#include "{native.SOURCE.with_name("signs.h")}"\n{handler}')
    return source


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are instructions of x86-64")
@pytest.mark.parametrize("without", WITHOUT)
def test_a_processor_with_fewer_instructions_counts_the_same(without, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "SOURCE", of_this_kernel_alone(tmp_path))
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, f"-mno-{without}"))
    compiler = native.compiler() or ""
    library = ctypes.CDLL(str(native._compile(compiler, tmp_path / "kernels.so")))
    name = f"{native.SIGNS}_without_{without}"
    handler = getattr(library, native.SIGNS)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    for shape in [(2, 6, 7, 40, 20, (3, 3)), (1, 9, 9, 64, 64, (3, 3)), (1, 4, 1, 300, 50, (1, 1))]:
        x, is_positive = operands(*shape)
        w, bits = of_ones(is_positive)
        padding = SAME if shape[-1] == (3, 3) else ((0, 0), (0, 0))
        monkeypatch.setattr(native, "SIGNS", name)
        y = jax.jit(lambda x, bits, p=padding: ops.convolve_signs(x, bits, 1, p))(x, bits)
        np.testing.assert_array_equal(y, literal(x, w, 1, padding))


def test_a_kernel_knows_the_bits_of_its_weights():
    is_positive = np.zeros((1, 2, 33, 17), bool)
    is_positive[0, 1, 32, 16] = is_positive[0, 0, 3, 2] = True
    kernel = ops.sign_kernel(is_positive, *np.array([[-1.0], [1.0]], np.float32).repeat(17, 1))
    assert kernel.words.shape == (2, 1, 2, 2, 16)
    assert kernel.words[1, 0, 1, 1, 0] == 1
    assert kernel.words[0, 0, 0, 0, 2] == 8
    assert np.sum(kernel.words) == 9
    assert [field.name for field in dataclasses.fields(kernel)] == ["words", "spread", "middle"]


def test_without_kernels_it_says_what_is_missing(monkeypatch):
    x, is_positive = operands(1, 3, 3, 8, 8, (3, 3))
    monkeypatch.setattr(native, "kernels", lambda: None)
    with pytest.raises(RuntimeError, match=r"install g\+\+"):
        ops.convolve_signs(jnp.asarray(x), of_ones(is_positive)[1], 1, SAME)
