"""What a network costs at inference, layer by layer, without running it: bits, bytes, products."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import Jaxpr, Literal

from fda_jax.layers import BinaryConv, BinaryDense, Method
from fda_jax.layers.binary import method_of
from fda_jax.layers.quantizers import QUANTIZED, Quantized, makes_signs, whole
from fda_jax.models.markdown import table

# Binary products that a processor makes at once, as Bi-Real Net and ReActNet count.
WORD = 64
# More different values of a filter are not packed, see `deploy.bits`.
_MOST_LEVELS = 16
_FLOAT32 = 4  # bytes
_LATENT = "latent_kernel"
_SCOPE = re.compile(r"<([^<>]*)>")
# Sizes of the layer that a method is tried on.
_FILTERS, _PIXELS, _CHANNELS = 4, 16, 64

Path = tuple[str, ...]
# An equation, and which of its results are read.
_Alive = tuple[Any, list[bool]]


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """What one layer costs at inference, for one image.

    Attributes:
      name: path of its module, e.g. "stage1_block1/conv1"; "" for what the network holds itself.
      kind: class of the module.
      output_shape: without the batch; () where it is not called.
      weight_bits: of a weight that it multiplies with, as the packed file holds it; 32 for float32
        (16 if that is what the network computes in); 0 where nothing is multiplied.
      activation_bits: likewise of what the weights are multiplied by: 1 for two values, 2 for
        three or four.
      binary: weights that take `weight_bits` bits each in the packed file.
      real: parameters that stay real, those of quantizers of activations included.
      training_only: parameters that inference does not read.
      statistics: numbers that inference reads beside parameters: running means and variances.
      bytes_packed: in the packed file, before its compression: bits, the values of each filter in
        float32, and real numbers in float32.
      bytes_float32: the same with every weight in float32.
      binary_macs: multiply-accumulates of -1 and 1 by weights of one bit: an exclusive or and a
        count of bits, as `deploy` runs them.
      real_macs: those of floating-point numbers by one another.
      mixed_macs: all others, such as real or ternary activations by weights of one bit.
      ace: arithmetic computation effort: the sum over all MACs of the product of both bits.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    weight_bits: int
    activation_bits: int
    binary: int
    real: int
    training_only: int
    statistics: int
    bytes_packed: int
    bytes_float32: int
    binary_macs: int
    real_macs: int
    mixed_macs: int
    ace: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of every kind."""
        return self.binary_macs + self.real_macs + self.mixed_macs


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a network costs at inference, for one image: `print` it, or read it.

    The totals are sums over the layers: `binary`, `real`, `training_only`, `bytes_packed`,
    `bytes_float32`, `macs`, `binary_macs`, `real_macs`, `mixed_macs`, `ace`.

    Attributes:
      image_shape_hwc: height, width and channels of the image.
      layers: by the order of their first call.
      counts_bits: whether the activations of all binary layers are signs, so that `deploy.freeze`
        writes a program that counts bits.
    """

    image_shape_hwc: tuple[int, int, int]
    layers: tuple[LayerSummary, ...]
    counts_bits: bool

    @property
    def binary(self) -> int:
        """Weights that are packed, one bit each where the method is binary."""
        return self._sum("binary")

    @property
    def real(self) -> int:
        """Parameters that stay real."""
        return self._sum("real")

    @property
    def training_only(self) -> int:
        """Parameters that inference does not read."""
        return self._sum("training_only")

    @property
    def parameters(self) -> int:
        """Parameters that are left at inference."""
        return self.binary + self.real

    @property
    def bytes_packed(self) -> int:
        """Bytes of all arrays in the packed file, before its compression and without programs."""
        return self._sum("bytes_packed")

    @property
    def bytes_float32(self) -> int:
        """Bytes of the same with every weight in float32."""
        return self._sum("bytes_float32")

    @property
    def compression(self) -> float:
        """How many times as large the network is in float32."""
        return self.bytes_float32 / max(self.bytes_packed, 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of every kind."""
        return self._sum("macs")

    @property
    def binary_macs(self) -> int:
        """Multiply-accumulates of signs by weights of one bit."""
        return self._sum("binary_macs")

    @property
    def real_macs(self) -> int:
        """Multiply-accumulates of floating-point numbers by one another."""
        return self._sum("real_macs")

    @property
    def mixed_macs(self) -> int:
        """Multiply-accumulates of neither kind."""
        return self._sum("mixed_macs")

    @property
    def binary_share(self) -> float:
        """Share of the MACs that are binary, in [0, 1]."""
        return self.binary_macs / max(self.macs, 1)

    @property
    def ops(self) -> float:
        """OPs: all MACs but the binary ones, and a 64th of these.

        Source: Bi-Real Net (arXiv 1808.00278), which calls them FLOPs in its comparison of memory
        and FLOPs, and ReActNet (arXiv 2003.03488); both count products alone, as here. Mixed MACs
        count whole: nothing here makes 64 of them at once.
        """
        return self.macs - self.binary_macs + self.binary_macs / WORD

    @property
    def ace(self) -> int:
        """Arithmetic computation effort: the sum over all MACs of the product of both bits.

        Source: PokeBNN (arXiv 2112.00133). Bits as of `LayerSummary`: ABC-Net's M bases of weights
        are M + 1 values and count as so many need, not as M.
        """
        return self._sum("ace")

    def _sum(self, name: str) -> int:
        return sum(getattr(layer, name) for layer in self.layers)

    def __str__(self) -> str:
        """Markdown: a table of the layers, and the totals."""
        return f"{_layers_table(self.layers)}\n\n{_totals(self)}"


def summarize(model: nn.Module, image_shape_hwc: Sequence[int]) -> Summary:
    """Say what a network costs at inference: parameters, bytes and products, layer by layer.

    Nothing is computed or compiled but a quantizer's answer to a few random numbers, which says how
    many values it leaves: the program that `deploy.freeze` would write is traced for one image, and
    counted. A multiply-accumulate (MAC) is one product of a convolution or of a matrix product;
    products with the zeros round an image count, as they do in the papers. Normalisation,
    nonlinearities, pooling, sums and scales are no MACs, as there. Parameters and statistics count
    where that program reads them.

    Args:
      model: network whose `apply(variables, images)` makes logits; of a network of one's own its
        binary layers are `BinaryConv` and `BinaryDense`.
      image_shape_hwc: height, width and channels of one image.

    Returns:
      A `Summary`, whose `str` is a table.

    Raises:
      ValueError: the image's shape is none, or does not fit the network; or a binary layer computes
        with its latent weights, as within nn.scan and nn.vmap, where `deploy.freeze` refuses it.

    Laws: bytes are those of the arrays of `deploy.freeze`, layer by layer.

    Examples:
      >>> from fda_jax import models
      >>> model = models.build("resnet_digits", method="fda", num_classes=10)
      >>> summary = models.summarize(model, (8, 8, 1))
      >>> summary.binary, summary.real, summary.bytes_packed, summary.bytes_float32
      (73728, 1390, 18104, 302264)
      >>> summary.binary_macs, summary.real_macs, round(summary.compression, 1)
      (2064384, 19072, 16.7)
    """
    shape = tuple(image_shape_hwc)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"image_shape_hwc is {shape}: give height, width and channels, e.g. (32, 32, 3)"
        )
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    calls: dict[Path, _Call] = {}
    with nn.intercept_methods(_recorder(calls)):
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves = {
        name: leaf
        for name, leaf in flatten_dict(dict(variables)).items()
        if isinstance(leaf, jax.ShapeDtypeStruct)  # not what was sown
    }
    methods = {path: call.method for path, call in calls.items() if call.method is not None}
    equations, read = _program(model, images, leaves, methods, calls)
    bits = _operand_bits(
        methods, {path: leaves.get(("params", *path, _LATENT)) for path in methods}
    )
    sums: dict[Path, Counter[str]] = {path: Counter() for path in calls}
    for name, leaf in leaves.items():
        path = _owner(name[1:-1], methods)
        size = math.prod(leaf.shape)
        depth = None
        if name[-1] == _LATENT and path in methods:
            if (QUANTIZED, *path) not in read:
                fate = "training_only"
            else:
                depth = bits[path].weight
                fate = "real" if depth is None else "binary"
        elif name[0] == "params":
            fate = "real" if name in read else "training_only"
        elif name in read:
            fate = "statistics"
        else:
            continue
        here = sums.setdefault(path, Counter())
        here[fate] += size
        if fate != "training_only":
            here["bytes_packed"] += _packed_bytes(leaf, depth)
            here["bytes_float32"] += _packed_bytes(leaf, None)
    widths: dict[Path, tuple[int, int]] = {}
    for product in _products(equations):
        path = _owner(product.path, methods)
        # What a quantizer within a layer multiplies is not the layer's product.
        mine = bits[path] if product.path in methods else _Bits(None, None, False)
        both = mine.weight or product.weight_bits, mine.activation or product.activation_bits
        kind = "mixed_macs"
        if mine.signs and both == (1, 1):
            kind = "binary_macs"
        elif mine.weight is None and mine.activation is None:
            kind = "real_macs"
        here = sums.setdefault(path, Counter())
        here[kind] += product.macs
        here["ace"] += product.macs * math.prod(both)
        if product.path in methods or path not in widths:
            widths[path] = both
    layers = tuple(
        _layer("/".join(path), calls.get(path), widths.get(path, (0, 0)), counted)
        for path, counted in sums.items()
        if counted
    )
    of_a_bit = [bits[path] for path in methods if bits[path].weight == 1]
    signs = [of.signs for of in of_a_bit]
    return Summary(shape, layers, bool(signs) and all(signs))


def _layer(
    name: str, call: "_Call | None", bits: tuple[int, int], counted: Mapping[str, int]
) -> LayerSummary:
    kind, output_shape = ("", ()) if call is None else (call.kind, call.output_shape)
    fields = dataclasses.fields(LayerSummary)[5:]
    return LayerSummary(
        name, kind, output_shape, *bits, **{field.name: counted[field.name] for field in fields}
    )


def _owner(path: Path, methods: Collection[Path]) -> Path:
    """The layer that a module belongs to: a binary one that it is in, or itself."""
    parts = (path[:length] for length in range(len(path) + 1))
    return next((part for part in parts if part in methods), path)


@dataclasses.dataclass
class _Call:
    """What is known of a module that was called; `method` of a binary layer alone."""

    kind: str
    method: Method | None
    output_shape: tuple[int, ...] = ()


def _recorder(calls: dict[Path, _Call]) -> Callable[..., Any]:
    """An interceptor that notes the calls of modules, and marks what they compute by their path."""

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        path = tuple(module.path)
        is_binary = isinstance(module, BinaryConv | BinaryDense)
        method = method_of(module) if is_binary else None
        noted = calls.setdefault(path, _Call(type(module).__name__, method))
        with jax.named_scope(f"<{'/'.join(path)}>"):
            output = call(*args, **kwargs)
        if context.method_name == "__call__" and hasattr(output, "shape"):
            noted.output_shape = tuple(output.shape[1:])
        return output

    return record


def _program(
    model: nn.Module,
    images: jax.ShapeDtypeStruct,
    leaves: Mapping[Path, jax.ShapeDtypeStruct],
    methods: Mapping[Path, Method],
    calls: dict[Path, _Call],
) -> tuple[list[_Alive], set[Path]]:
    """Equations of the inference that `deploy.freeze` writes down, and the variables that it reads.

    Quantized kernels are variables of it, named ("quantized", *layer).
    """
    kernels = {
        path: Quantized(cast(Any, leaves["params", *path, _LATENT]), None, method.weight)
        for path, method in methods.items()
        if ("params", *path, _LATENT) in leaves
    }

    def predict(values: Sequence[Any], quantized: Sequence[Quantized], images: jax.Array) -> Any:
        given = unflatten_dict(dict(zip(leaves, values, strict=True)))
        by_layer = zip(kernels, quantized, strict=True)
        given[QUANTIZED] = unflatten_dict({(*path, "kernel"): each for path, each in by_layer})
        with nn.intercept_methods(_recorder(calls)):
            return model.apply(given, images)

    jaxpr = jax.make_jaxpr(predict)([*leaves.values()], [*kernels.values()], images).jaxpr
    equations, needed = _alive(jaxpr)
    names = [*leaves, *((QUANTIZED, *path) for path in kernels)]
    read = {name for name, var in zip(names, jaxpr.invars, strict=False) if var in needed}
    for name in read:
        if name[-1] == _LATENT:
            raise ValueError(
                f"a binary layer computes with its latent weights, {'/'.join(name)}, for its "
                "quantized ones do not reach it: let it be a module within the network, outside of "
                "nn.scan and nn.vmap"
            )
    return equations, read


def _alive(jaxpr: Jaxpr, wanted: Sequence[bool] | None = None) -> tuple[list[_Alive], set[Any]]:
    """The equations that the wanted results depend on, and all variables that these read.

    With each equation comes which of its own results are read; `wanted` None is all.
    """
    flags = [True] * len(jaxpr.outvars) if wanted is None else wanted
    ends = zip(jaxpr.outvars, flags, strict=True)
    needed = {var for var, flag in ends if flag and not isinstance(var, Literal)}
    alive = []
    for equation in reversed(jaxpr.eqns):
        flags = [var in needed for var in equation.outvars]
        if not (equation.effects or any(flags)):
            continue
        alive.append((equation, flags))
        called = _call_of(equation)
        read = equation.invars
        if called is not None:
            inside = _alive(called, flags)[1]
            pairs = zip(equation.invars, called.invars, strict=True)
            read = [var for var, own in pairs if own in inside]
        needed.update(var for var in read if not isinstance(var, Literal))
    return alive[::-1], needed


def _call_of(equation: Any) -> Jaxpr | None:
    """The function that an equation does nothing but call; None for loops, branches and others."""
    inner = [*_called(equation.params)]
    if len(inner) != 1 or equation.primitive.name in ("scan", "while", "cond"):
        return None
    sizes = len(inner[0].invars), len(inner[0].outvars)
    return inner[0] if sizes == (len(equation.invars), len(equation.outvars)) else None


@dataclasses.dataclass(frozen=True)
class _Product:
    """A convolution or matrix product within a module: its MACs, and its operands' bits."""

    path: Path
    macs: int
    weight_bits: int
    activation_bits: int


def _products(equations: Sequence[_Alive], scope: str = "", times: int = 1) -> Iterator[_Product]:
    """Those of some equations, and of the functions that they call."""
    for equation, wanted in equations:
        where = f"{scope}/{equation.source_info.name_stack}"
        name, parameters = equation.primitive.name, equation.params
        if name in ("conv_general_dilated", "dot_general"):
            left, right = (var.aval for var in equation.invars)
            size = math.prod(equation.outvars[0].aval.shape)
            if name == "dot_general":
                ((contracted, _), _) = parameters["dimension_numbers"]
                size *= math.prod(left.shape[axis] for axis in contracted)
            else:
                filters = right.shape[parameters["dimension_numbers"].rhs_spec[0]]
                size *= math.prod(right.shape) // filters
            marks = _SCOPE.findall(where)
            path = tuple(marks[-1].split("/")) if marks and marks[-1] else ()
            bits = (8 * operand.dtype.itemsize for operand in (right, left))
            yield _Product(path, times * size, *bits)
            continue
        flags = None if _call_of(equation) is None else wanted
        inner = [_alive(jaxpr, flags)[0] for jaxpr in _called(parameters)]
        if name == "cond":  # one of them is run: the one that costs most
            choices = [list(_products(branch, where, times)) for branch in inner]
            yield from max(choices, key=lambda choice: sum(product.macs for product in choice))
            continue
        for called in inner:
            yield from _products(called, where, times * parameters.get("length", 1))


def _called(parameters: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            open_part = getattr(part, "jaxpr", part)  # where it is closed
            if isinstance(open_part, Jaxpr):
                yield open_part


@dataclasses.dataclass(frozen=True)
class _Bits:
    """What a method leaves of an operand: bits, None where it stays real; and whether the
    activations are signs."""

    weight: int | None
    activation: int | None
    signs: bool


def _operand_bits(
    methods: Mapping[Path, Method], latent: Mapping[Path, jax.ShapeDtypeStruct | None]
) -> dict[Path, _Bits]:
    """Of each layer, by its method, which layers mostly share, and its latent kernel."""
    tried: list[tuple[Method, _Bits]] = []
    found = {}
    for path, method in methods.items():
        known = next((bits for other, bits in tried if other == method), None)
        if known is None:
            known = _tried(method)
            tried.append((method, known))
        kernel = latent[path]
        weight = None if kernel is None else _packed_bits(kernel.shape, known.weight)
        found[path] = dataclasses.replace(known, weight=weight)
    return found


def _tried(method: Method) -> _Bits:
    """Count the values that a method makes of random weights and activations."""
    if method.weight is None and method.activation is None:
        return _Bits(None, None, False)
    layer = BinaryConv(_FILTERS, method=method)
    random = np.random.default_rng(0)
    images = random.normal(size=(1, _PIXELS, _PIXELS, _CHANNELS)).astype(np.float32)
    kernel = random.normal(size=(3, 3, _CHANNELS, _FILTERS)).astype(np.float32)

    @jax.jit
    def quantize(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = {}

        def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            if tuple(context.module.path) == ("activation",):
                seen["activation"] = whole(output)
            return output

        variables = dict(layer.init(jax.random.key(1), images))
        # In place of random ones of JAX, which take a second to compile.
        name = _LATENT if _LATENT in variables["params"] else "kernel"
        variables["params"] = {**variables["params"], name: kernel}
        with nn.intercept_methods(look):
            _, sown = layer.apply(variables, images, mutable=["effective_weights"])
        return cast(Any, sown)["effective_weights"]["kernel"][0], seen["activation"]

    weights, activations = map(np.asarray, quantize(images, kernel))
    named = getattr(getattr(method.activation, "estimator", None), "levels", None)
    return _Bits(
        weight=None if method.weight is None else _depth(_values(weights)),
        activation=_depth(_values(activations)) if named is None else _bits_of(len(named)),
        signs=makes_signs(method.activation),
    )


def _values(array: np.ndarray) -> int:
    """The most different values that an entry of the last axis has."""
    columns = array.reshape(-1, array.shape[-1]).T
    return max(len(np.unique(column)) for column in columns)


def _depth(values: int) -> int | None:
    """Bits of so many values; None for more than a file has a table for."""
    return None if values > _MOST_LEVELS else _bits_of(values)


def _bits_of(values: int) -> int:
    return max(1, (values - 1).bit_length())


def _packed_bits(shape: Sequence[int], bits: int | None) -> int | None:
    """Bits of a weight in the file; None where its kernel would not be smaller for them."""
    if bits is None:
        return None
    size = math.prod(shape)
    packed = bits * -(-size // 8) + _FLOAT32 * 2**bits * shape[-1]
    return bits if packed < _FLOAT32 * size else None


def _packed_bytes(leaf: jax.ShapeDtypeStruct, bits: int | None) -> int:
    """Bytes in the file, of a kernel in so many bits a weight or of an array of numbers."""
    size = math.prod(leaf.shape)
    if bits is not None:
        return bits * -(-size // 8) + _FLOAT32 * 2**bits * leaf.shape[-1]
    # The file knows no 16-bit numbers.
    return size * (_FLOAT32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype.itemsize)


_HEADER = (
    "layer",
    "kind",
    "output",
    "bits",
    "MACs",
    "binary",
    "real",
    "training only",
    "bytes",
)


def _layers_table(layers: Sequence[LayerSummary]) -> str:
    rows = [
        (
            layer.name or "(itself)",
            layer.kind,
            " x ".join(map(str, layer.output_shape)),
            f"{layer.weight_bits} x {layer.activation_bits}" if layer.macs else "",
            *(
                f"{number:,}" if number else ""
                for number in (
                    layer.macs,
                    layer.binary,
                    layer.real,
                    layer.training_only,
                    layer.bytes_packed,
                )
            ),
        )
        for layer in layers
    ]
    return table(_HEADER, rows, numbers=range(4, len(_HEADER)))


def _totals(summary: Summary) -> str:
    """What the layers add up to, as a table."""
    whole = max(summary.macs, 1)
    kinds = (
        ("binary", summary.binary_macs),
        ("mixed", summary.mixed_macs),
        ("real", summary.real_macs),
    )
    shape = " x ".join(map(str, summary.image_shape_hwc))
    rows = [
        ("image", shape),
        ("parameters", f"{summary.parameters:,}"),
        ("of these binary", f"{summary.binary:,}"),
        ("in training only", f"{summary.training_only:,}"),
        ("bytes packed", f"{summary.bytes_packed:,}"),
        ("bytes in float32", f"{summary.bytes_float32:,} ({summary.compression:.1f} times)"),
        ("MACs", f"{summary.macs:,}"),
        *((f"of these {name}", f"{n:,} ({n / whole:.1%})") for name, n in kinds if n),
        (f"OPs (binary MACs / {WORD})", f"{summary.ops:,.0f}"),
        ("ACE", f"{summary.ace:,}"),
    ]
    return table(("in all", ""), rows, numbers=())
