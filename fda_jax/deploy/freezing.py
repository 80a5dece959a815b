"""From a trained network to the one that is shipped."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from fda_jax import data
from fda_jax.deploy import onnx_form, qonnx
from fda_jax.deploy.bits import pack, unpack
from fda_jax.deploy.network import (
    FORMAT,
    PackedNetwork,
    for_bit_arithmetic,
    kernel,
    kernel_of_bits,
)
from fda_jax.layers import BinaryConv, BinaryDense, Method
from fda_jax.layers.binary import method_of
from fda_jax.layers.quantizers import QUANTIZED, Quantized, ScaledOperand, makes_signs
from fda_jax.ops import native

# A file runs on any of them, wherever it was made.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_LOCATIONS = "jax_traceback_in_locations_limit"

Arrays = dict[str, np.ndarray]


def freeze(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: Sequence[int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    facts: Mapping[str, Any] | None = None,
) -> PackedNetwork:
    """Freeze a network for inference: quantized kernels as bits, and programs for all of it.

    Latent weights, noise modules and quantizers of weights are left behind: what they make of the
    weights at the end of training is computed once. A kernel whose filters have at most 16
    different values each, two for a binary one, is packed without loss; another is kept as it is.

    One program multiplies in floating point and runs everywhere. Where all activations that meet
    weights of one bit are signs, another one makes the sums of these layers by counting bits, for
    CPUs; it is left out where there is no C++ compiler, with which its kernel is made.

    Args:
      model: network whose `apply(variables, images)` makes logits; its binary layers are
        `BinaryConv` and `BinaryDense`.
      variables: its parameters and statistics.
      image_shape: height, width and channels of one image.
      mean: of each channel, see `data.normalize`.
      std: of each channel, likewise.
      facts: what the file is to say besides; values that JSON can hold.

    Returns:
      A `PackedNetwork`.

    Raises:
      ValueError: a weight is not finite, or what a binary layer computes with is out of reach.

    Laws: logits are those of `model.apply(variables, normalised images)`.
    """
    predict, real, used, binary, methods = _frozen(model, variables, image_shape, mean, std)
    (batch,) = export.symbolic_shape("batch")
    images_shape = (batch, *image_shape)
    program = _exported(_for_any_batch(predict), used, images_shape)
    bit_program, called = None, []
    of_a_bit = [methods[layer] for layer, facts in binary.items() if facts["bits"] == 1]
    countable = of_a_bit and all(makes_signs(method.activation) for method in of_a_bit)
    if countable and native.kernels() is not None:
        predict = _program(model, real, binary, methods, mean, std, kernel_of_bits)
        predict = _on_our_kernels(predict)
        bit_arrays = for_bit_arithmetic(used, binary)
        bit_program = _exported(predict, bit_arrays, images_shape, kernels=native.TARGETS)
        text = bit_program.mlir_module()
        called = [name for name in native.TARGETS if f"@{name}(" in text]
    described = {
        **(facts or {}),
        "format": FORMAT,
        "image_shape": list(image_shape),
        "binary": binary,
        "kernels": called,
    }
    written = None if bit_program is None else bytes(bit_program.serialize())
    return PackedNetwork(described, used, bytes(program.serialize()), written)


def to_onnx(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: Sequence[int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    facts: Mapping[str, Any] | None = None,
    qonnx: bool = False,
) -> Any:
    """Freeze a network for inference elsewhere: as an ONNX model, which needs no JAX.

    Binary weights lie in it as bits, and nodes of the graph make numbers of them, which a runtime
    does once, when it loads the model. It computes in float32, whatever the network did, and knows
    no arithmetic on signs but that of numbers.

    Args:
      model: network whose `apply(variables, images)` makes logits; its binary layers are
        `BinaryConv` and `BinaryDense`.
      variables: its parameters and statistics.
      image_shape: height, width and channels of one image.
      mean: of each channel, see `data.normalize`.
      std: of each channel, likewise.
      facts: what the file is to say besides, as metadata; values that JSON can hold.
      qonnx: make a QONNX model, which says what is binary to the compilers that build hardware:
        nodes BipolarQuant make each binary kernel, and the signs of activations. Its weights are
        float32, -1 and 1. It runs wherever one of ONNX's operators alone does.

    Returns:
      An `onnx.ModelProto` of operators of version 18: "images" uint8 (batch, *image_shape), 0 to
      255, to "logits" float32 (batch, classes), for every batch. A QONNX model takes the same
      numbers as float32. Its metadata hold texts as they are and other facts as JSON.

    Raises:
      ValueError: a weight is not finite; or the package onnx is missing.

    Laws: logits are those of `model.apply(variables, normalised images)` in float32, but for
      rounding.
    """
    if hasattr(model, "dtype"):
        model = model.clone(dtype=jnp.float32)
    predict, real, used, binary, methods = _frozen(model, variables, image_shape, mean, std)
    if qonnx:
        used = _of_signs(used, binary)
        predict = _program(model, real, binary, methods, mean, std, _kernel_of_signs)
    predict = _for_any_batch(predict)
    texts = {
        name: fact if isinstance(fact, str) else json.dumps(fact)
        for name, fact in (facts or {}).items()
    }
    return onnx_form.to_model(predict, used, image_shape, texts, qonnx=qonnx)


def _frozen(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Callable[..., jax.Array], Arrays, Arrays, dict[str, Any], dict[str, Method]]:
    """The program in floating point, all variables by name, the arrays that the program takes, what
    `_packed` says of binary layers, and their methods."""
    kernels, methods, apart = _kernels(model, variables, image_shape)
    _check_finite(kernels)
    arrays, binary = _packed(kernels, apart)
    real = {"/".join(path): _narrow(leaf) for path, leaf in flatten_dict(dict(variables)).items()}
    predict = _program(model, real, binary, methods, mean, std, _kernel_apart)
    # What inference does not read, such as latent weights, is no part of the file.
    used = _used(predict, {**arrays, **real}, image_shape)
    _check_reached(used)
    read = {name.rpartition("/")[0] for name in used if name in arrays}
    if read != binary.keys():
        # Layers of the training alone, such as a head that only the loss sees.
        binary, methods = (
            {layer: of[layer] for layer in of if layer in read} for of in (binary, methods)
        )
        predict = _program(model, real, binary, methods, mean, std, _kernel_apart)
    _check_finite({name: array for name, array in used.items() if name in real})
    return predict, real, used, binary, methods


def _kernels(
    model: nn.Module, variables: Mapping[str, Any], image_shape: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, Method], set[str]]:
    """The quantized kernel and the method of every binary layer, by the layer's path, and the paths
    of those whose quantizer keeps the scale apart."""
    images = jnp.zeros((1, *image_shape))
    methods, apart = {}, set()

    def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        made, path = call(*args, **kwargs), context.module.path
        if isinstance(context.module, BinaryConv | BinaryDense):
            methods["/".join(path)] = method_of(context.module)
        elif path[-1:] == ("weight",) and isinstance(made, ScaledOperand):
            apart.add("/".join(path[:-1]))
        return made

    @jax.jit
    def quantize(variables: Mapping[str, Any]) -> Any:
        with nn.intercept_methods(look):
            return model.apply(variables, images, mutable=["effective_weights"])[1]

    sown = quantize(variables).get("effective_weights", {})
    found = cast(dict[Any, Any], flatten_dict(sown))
    kernels = {"/".join(path[:-1]): _narrow(calls[0]) for path, calls in found.items()}
    return kernels, methods, apart


def _narrow(leaf: Any) -> np.ndarray:
    """What a NumPy file holds, which knows no bfloat16, and a JAX without 64 bits can read."""
    array = np.asarray(leaf)
    is_real = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32, copy=False) if is_real else array


def _check_reached(used: Arrays) -> None:
    for name in used:
        if name.endswith("/latent_kernel"):
            raise ValueError(
                f"a binary layer computes with its latent weights, {name}, for its quantized ones "
                "do not reach it: let it be a module within the network, outside of nn.scan and "
                "nn.vmap"
            )


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        count = int(np.sum(~np.isfinite(array)))
        if count:
            raise ValueError(
                f"{name} holds {count} numbers that are not finite, so the network has no answer: "
                "take an earlier checkpoint, or train it again"
            )


def _packed(
    kernels: Mapping[str, np.ndarray], apart: Collection[str]
) -> tuple[Arrays, dict[str, Any]]:
    """Arrays of the file and {layer: {"shape", "bits", "scaled"}}; bits is None where nothing is
    packed, and scaled says whether the scale multiplies the layer's sums."""
    arrays, binary = {}, {}
    for layer, weights in kernels.items():
        packed = pack(weights)
        bits = None if packed is None else len(packed.planes)
        scaled = False
        if packed is not None and bits == 1 and layer in apart:
            low, high = np.abs(packed.levels)
            scaled = bool(np.all(low == high))
        binary[layer] = {"shape": list(weights.shape), "bits": bits, "scaled": scaled}
        if packed is None:
            arrays[f"{layer}/kernel"] = weights
        else:
            arrays[f"{layer}/planes"], arrays[f"{layer}/levels"] = packed.planes, packed.levels
    return arrays, binary


def _kernel_apart(
    arrays: Mapping[str, jax.Array], layer: str, facts: Mapping[str, Any]
) -> jax.Array | ScaledOperand:
    """The kernel of a binary layer, and its scale apart where training has it so."""
    if not facts["scaled"]:
        return kernel(arrays, layer, facts)
    levels = arrays[f"{layer}/levels"]
    scale = jnp.max(jnp.abs(levels), axis=0)
    signs = levels / jnp.where(scale > 0, scale, 1)
    return ScaledOperand(unpack(arrays[f"{layer}/planes"], signs, facts["shape"]), scale)


def _of_signs(arrays: Arrays, binary: Mapping[str, Any]) -> Arrays:
    """The arrays with each kernel as numbers, and those of one bit as signs, see `qonnx.split`."""
    numbers = dict(arrays)
    for layer, facts in binary.items():
        weights = np.asarray(kernel(arrays, layer, facts))
        for name in ("planes", "levels"):
            numbers.pop(f"{layer}/{name}", None)
        if facts["bits"] != 1:
            numbers[f"{layer}/kernel"] = weights
            continue
        signs, scale, middle = qonnx.split(weights)
        numbers |= {f"{layer}{onnx_form.SIGNS}": signs, f"{layer}/scale": scale}
        if np.any(middle):
            numbers[f"{layer}/middle"] = middle
    return numbers


def _kernel_of_signs(
    arrays: Mapping[str, jax.Array], layer: str, facts: Mapping[str, Any]
) -> jax.Array | ScaledOperand:
    """The kernel of a binary layer, of what `_of_signs` makes."""
    if facts["bits"] != 1:
        return arrays[f"{layer}/kernel"]
    weights = ScaledOperand(arrays[f"{layer}{onnx_form.SIGNS}"], arrays[f"{layer}/scale"])
    middle = arrays.get(f"{layer}/middle")
    return weights if middle is None else weights.product() + middle


def _program(
    model: nn.Module,
    real: Arrays,
    binary: Mapping[str, Any],
    methods: Mapping[str, Method],
    mean: Sequence[float],
    std: Sequence[float],
    make_kernel: Callable[..., Any],
) -> Callable[..., jax.Array]:
    """(arrays, stored images) -> logits; what `real` has and the arrays lack is 0, and unused."""

    def predict(arrays: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        quantized = {
            (*layer.split("/"), "kernel"): Quantized(
                make_kernel(arrays, layer, facts), None, methods[layer].weight
            )
            for layer, facts in binary.items()
        }
        given = {
            tuple(name.split("/")): arrays.get(name, jnp.zeros(leaf.shape, leaf.dtype))
            for name, leaf in real.items()
        }
        variables = {**unflatten_dict(given), QUANTIZED: unflatten_dict(quantized)}
        return cast(jax.Array, model.apply(variables, data.normalize(images, mean, std)))

    return predict


def _for_any_batch(predict: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same program, which says in words where the number of images has to be known."""

    def named(arrays: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        layers: list[str] = []

        def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except jax.errors.InconclusiveDimensionOperation:
                layers.append("/".join(context.module.path) or type(context.module).__name__)
                raise

        try:
            with nn.intercept_methods(look):
                return predict(arrays, images)
        except jax.errors.InconclusiveDimensionOperation as error:
            raise ValueError(
                f"the layer {layers[0] if layers else ''} of the network needs to know the number "
                "of images, and a file answers any number: let it use the sizes of arrays in "
                "shapes alone, as in x.reshape(x.shape[0], -1)"
            ) from error

    return named


def _on_our_kernels(predict: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same program, whose real convolutions go through the kernels that training uses."""
    kernels = native.kernels() if jax.default_backend() == "cpu" else None
    # What fits the widest registers runs with narrower ones, too.
    if kernels is None or kernels.lanes < native.MOST_LANES:
        return predict

    def forward(arrays: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        # They are chosen where a derivative may be asked for; what it would need is left out again.
        return jax.vjp(lambda arrays: predict(arrays, images), arrays)[0]

    return forward


def _exported(
    predict: Callable[..., jax.Array],
    arrays: Arrays,
    images_shape: Sequence[Any],
    *,
    kernels: Sequence[str] = (),
) -> export.Exported:
    """A program for everywhere, or one for CPUs that may call some of our kernels."""
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
    images = jax.ShapeDtypeStruct(images_shape, jnp.uint8)
    platforms = ("cpu",) if kernels else PLATFORMS
    known = [export.DisabledSafetyCheck.custom_call(kernel) for kernel in kernels]
    with _without_locations():
        exporter = export.export(jax.jit(predict), platforms=platforms, disabled_checks=known)
        return exporter(shapes, images)


def _used(predict: Callable[..., jax.Array], arrays: Arrays, image_shape: Sequence[int]) -> Arrays:
    """Those of the arrays that the program reads."""
    # JAX leaves out what a program does not read where the batch is a number alone.
    kept = _exported(predict, arrays, (1, *image_shape)).module_kept_var_idx
    flat = sorted(arrays)  # the order in which it takes a dictionary
    return {flat[i]: arrays[flat[i]] for i in kept if i < len(flat)}


@contextmanager
def _without_locations() -> Iterator[None]:
    """Leave the paths of source files out of a program."""
    before = getattr(jax.config, _LOCATIONS)
    jax.config.update(_LOCATIONS, 0)
    try:
        yield
    finally:
        jax.config.update(_LOCATIONS, before)
