"""A frozen network's program in ONNX, node by node, from what JAX traces."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import export

from fda_jax.data.errors import require
from fda_jax.deploy import qonnx as bipolar

# ONNX's version of 2022-12, the first with operators on bits, and the file format of that time.
OPSET, IR_VERSION = 18, 8
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
# Ends of the names of arrays whose bits are weights, and of those whose elements are -1 and 1.
BITS, SIGNS = "/planes", "/signs"

# JAX's primitives with an operator of their own, element by element.
_ELEMENTWISE = {
    "abs": "Abs",
    "acos": "Acos",
    "acosh": "Acosh",
    "add": "Add",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tan": "Tan",
    "tanh": "Tanh",
}
# Those with one for truth values and another for whole numbers.
_LOGICAL = {
    "and": ("And", "BitwiseAnd"),
    "not": ("Not", "BitwiseNot"),
    "or": ("Or", "BitwiseOr"),
    "xor": ("Xor", "BitwiseXor"),
}
# Those whose elements are made of elements at the same place, one by one.
_LOCAL = {*_ELEMENTWISE, *_LOGICAL, "cbrt", "clamp", "convert_element_type", "erfc", "exp2"}
_LOCAL |= {"expm1", "integer_pow", "is_finite", "log1p", "ne", "rem", "round", "rsqrt"}
_LOCAL |= {"select_n", "shift_right_logical", "square"}
# Functions inside the program, some with a derivative of their own.
_CALLS = {
    "checkpoint",
    "closed_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "jit",
    "pjit",
    "remat2",
}
# What changes nothing here: no derivative is taken.
_IDENTITIES = {"copy", "copy_p", "optimization_barrier", "stop_gradient"}


@dataclasses.dataclass(frozen=True)
class _Value:
    """What stands for a variable of the traced program.

    Attributes:
      shape: 1 where the variable's is more if all elements along it are equal.
      name: of the graph's tensor; "" where the elements are known.
      array: the elements where they are known.
      order: axis i is axis order[i] of the tensor; None for axis i.
    """

    shape: tuple[Any, ...]
    name: str = ""
    array: np.ndarray | None = None
    order: tuple[int, ...] | None = None

    def place(self, axis: int) -> int:
        """Where the tensor has an axis."""
        return axis if self.order is None else self.order[axis]


@dataclasses.dataclass(frozen=True)
class _Windows:
    """Windows of an array: sizes, strides and borders (before, behind) along each axis."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


def to_model(
    predict: Callable[..., jax.Array],
    arrays: Mapping[str, np.ndarray],
    image_shape: Sequence[int],
    facts: Mapping[str, str],
    *,
    qonnx: bool = False,
) -> Any:
    """A program as an ONNX model, which takes uint8 images (batch, *image_shape), any batch.

    As a QONNX model, of float32 images, it says what is binary: nodes BipolarQuant make arrays of
    signs, and the signs of activations. The model holds the operator's definition, too, so that a
    runtime which knows nothing of QONNX runs it.

    Args:
      predict: (arrays, images) -> float32 logits (batch, classes).
      arrays: what it takes, by name. Those whose names end with `BITS` the model holds as they are,
        and computes with when it runs; what follows from the others alone is computed here.
      image_shape: of one image.
      facts: of the model's metadata, text by name.
      qonnx: make a QONNX model, in which arrays whose names end with `SIGNS` are -1 or 1.

    Returns:
      An `onnx.ModelProto`.

    Raises:
      ValueError: the package onnx is missing, or the program has a part without an ONNX form.
    """
    require("onnx", extra="onnx", purpose="an ONNX file")
    import onnx
    from onnx import helper

    (batch,) = export.symbolic_shape(BATCH)
    pixels = np.dtype(np.float32 if qonnx else np.uint8)
    images = jax.ShapeDtypeStruct((batch, *image_shape), pixels)
    traced = jax.make_jaxpr(predict)(
        {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}, images
    )
    signs = [array for name, array in arrays.items() if name.endswith(SIGNS)]
    graph = _Graph(batch, signs if qonnx else None)
    given = [
        graph.initializer(arrays[name], name) if name.endswith(BITS) else _known(arrays[name])
        for name in sorted(arrays)  # the order in which JAX takes a dictionary
    ]
    for name, array in arrays.items():
        graph.call(array, name)
    given.append(_Value(images.shape, INPUT))
    (logits,) = graph.translate(traced.jaxpr, traced.consts, given)
    (shape,) = (cast(Any, variable.aval).shape for variable in traced.jaxpr.outvars)
    nodes, initializers = graph.finished(graph.whole(logits, shape))
    described = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [BATCH, *sizes]
        )
        for name, dtype, sizes in ((INPUT, pixels, image_shape), (OUTPUT, np.float32, shape[1:]))
    ]
    made = helper.make_graph(
        nodes, "network", described[:1], described[1:], initializer=initializers
    )
    opsets, functions = [helper.make_opsetid("", OPSET)], []
    if qonnx:
        opsets.append(helper.make_opsetid(bipolar.DOMAIN, 1))
        functions.append(bipolar.definition(OPSET))
    if qonnx:  # whole numbers of 8 bits, as floating-point ones
        made.quantization_annotation.append(bipolar.annotation(INPUT, "UINT8"))
    model = helper.make_model(
        made,
        opset_imports=opsets,
        functions=functions,
        ir_version=IR_VERSION,
        producer_name="fda_jax",
    )
    helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """An ONNX graph under construction.

    Args:
      batch: size of the batch, a symbol.
      signs: arrays of -1 and 1, for a graph of QONNX; or None.
    """

    def __init__(self, batch: Any, signs: Sequence[np.ndarray] | None) -> None:
        from onnx import helper, numpy_helper

        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._is_qonnx = signs is not None
        # The operator and the inputs that made a tensor, and the array of one that is held.
        self._made: dict[str, tuple[str, list[str]]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        # By identity, with the array, so that the identity stays taken.
        self._names: dict[int, tuple[np.ndarray, str]] = {}
        # Likewise.
        self._signs = {id(array): array for array in signs or ()}
        self._helper, self._numpy_helper, self._batch = helper, numpy_helper, batch
        self._constants: dict[Any, str] = {}
        self._transposed: dict[Any, str] = {}
        self._count = 0
        self._stack: list[str] = []  # names of the layers and calls that are being translated

    def translate(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[_Value]) -> list[_Value]:
        """Add a program's nodes; what its results are."""
        values: dict[Any, _Value] = {}

        def read(variable: Any) -> _Value:
            if isinstance(variable, jex.Literal):
                return _known(np.asarray(variable.val, cast(Any, variable.aval).dtype))
            return values[variable]

        values |= zip(jaxpr.constvars, (_known(np.asarray(c)) for c in consts), strict=True)
        values |= zip(jaxpr.invars, given, strict=True)
        for equation in jaxpr.eqns:
            self._stack.append(str(equation.source_info.name_stack))
            results = self._results(equation, [read(variable) for variable in equation.invars])
            self._stack.pop()
            values |= zip(equation.outvars, results, strict=True)
        return [read(variable) for variable in jaxpr.outvars]

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Add a node; the name of its (first) result."""
        names = list(outputs) or [self._fresh()]
        self._nodes.append(self._helper.make_node(operator, list(inputs), names, **attributes))
        self._made[names[0]] = (operator, list(inputs))
        return names[0]

    def finished(self, result: _Value) -> tuple[list[Any], list[Any]]:
        """The nodes in the order in which they run, and the arrays, that make the output."""
        name = self.name_of(result)
        if name not in self._made:  # no node's
            name = self.node("Identity", [name])
        nodes, needed = [], {name}
        for node in reversed(self._nodes):
            if needed.isdisjoint(node.output):
                continue
            nodes.append(node)
            needed.update(node.input)
            for names in (node.input, node.output):
                names[:] = [OUTPUT if each == name else each for each in names]
        return nodes[::-1], [array for array in self._initializers if array.name in needed]

    def call(self, array: np.ndarray, name: str) -> None:
        """Give a known array the name under which the graph holds it, if it comes to."""
        self._names[id(array)] = (array, name)

    def initializer(self, array: np.ndarray, name: str) -> _Value:
        """Have the graph hold an array."""
        array = np.asarray(array, order="C")
        self._initializers.append(self._numpy_helper.from_array(array, name))
        return _Value(array.shape, name)

    def name_of(self, value: _Value) -> str:
        """The name of a value's tensor; one that is known becomes an array of the graph's."""
        array = value.array
        if array is None and value.order is None:
            return value.name
        if array is None:
            turned = value.name, value.order
            if turned not in self._transposed:
                perm = list(cast(Any, value.order))
                self._transposed[turned] = self.node("Transpose", [value.name], perm=perm)
            return self._transposed[turned]
        key = (array.tobytes(), array.shape, array.dtype.str)
        # Compilers of QONNX want an array of its own for each node.
        if self._is_qonnx or key not in self._constants:
            _, name = self._names.pop(id(array), (None, ""))
            made = self.initializer(array, name or self._fresh()).name
            self._arrays[made] = array
            if id(array) in self._signs:
                made = self._bipolar(made, 1.0)
            self._constants[key] = made
        return self._constants[key]

    def _is_known(self, value: _Value) -> bool:
        """Whether a value is to be computed with here; signs are left to the graph."""
        return value.array is not None and id(value.array) not in self._signs

    def _known_arrays(self, values: Sequence[_Value]) -> list[np.ndarray] | None:
        """The elements of all values, if all are known."""
        if not all(map(self._is_known, values)):
            return None
        return [cast(np.ndarray, value.array) for value in values]

    def _bipolar(self, x: str, scale: float) -> str:
        # No array: of one that only operators of QONNX read, its tools infer no shape, which hls4ml
        # asks for.
        made = self.node("Constant", [], value_float=scale)
        return self.node(bipolar.OPERATOR, [x, made], domain=bipolar.DOMAIN)

    def whole(self, value: _Value, shape: Sequence[Any]) -> _Value:
        """A value whose elements are all there."""
        if value.shape == tuple(shape):
            return value
        if value.array is not None and _is_fixed(shape):
            return _known(np.broadcast_to(value.array, shape))
        target = self._sizes(shape)
        return _Value(tuple(shape), self.node("Expand", [self.name_of(value), target]))

    def _sizes(self, shape: Sequence[Any]) -> str:
        """The name of a tensor that holds the sizes of a shape."""
        return self.node("Concat", [self._size(dim) for dim in shape], axis=0)

    def _size(self, dim: Any) -> str:
        """The name of a tensor that holds one size."""
        if isinstance(dim, int):
            return self._numbers([dim])
        if dim != self._batch:
            raise self._refusal(f"makes {dim} elements, where the batch alone may vary")
        shape = self.node("Shape", [INPUT])
        return self.node("Slice", [shape, self._numbers([0]), self._numbers([1])])

    def _numbers(self, numbers: Any) -> str:
        return self._number(numbers, np.int64)

    def _number(self, number: Any, dtype: Any) -> str:
        return self.name_of(_known(np.asarray(number, dtype)))

    def _cast(self, name: str, dtype: Any, to: Any) -> str:
        before, after = _wide(dtype), _wide(to)
        if before == after:
            return name
        return self.node("Cast", [name], to=self._helper.np_dtype_to_tensor_dtype(after))

    def _refusal(self, what: str) -> ValueError:
        layer = "/".join(filter(None, self._stack)) or "the network"
        return ValueError(f"{layer} {what}: ship it as .npz")

    def _fresh(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _results(self, equation: Any, inputs: Sequence[_Value]) -> list[_Value]:
        """What stands for an equation's results."""
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            inner, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            windows = _windows(inner)
            if windows is None or inputs[0].array is not None:
                return self.translate(inner, consts, inputs)
            images = self.whole(inputs[0], equation.invars[0].aval.shape)
            return [self._pooled("MaxPool", equation, windows, images)]
        if name in _IDENTITIES:
            return list(inputs)
        if name == "select_n" and inputs[0].array is not None and inputs[0].array.size == 1:
            return [inputs[1 + int(inputs[0].array.item())]]
        shapes = [variable.aval.shape for variable in equation.outvars]
        if name == "broadcast_in_dim":
            return [self._spread(inputs[0], params["broadcast_dimensions"], len(shapes[0]))]
        if name in _LOCAL:
            arrays = self._known_arrays(inputs)
            if arrays is not None:
                arrays = np.broadcast_arrays(*arrays)
                return [_known(np.asarray(equation.primitive.bind(*arrays, **params)))]
            return [self._local(equation, inputs)]
        # The others see every element of what they take.
        inputs = [
            self.whole(value, variable.aval.shape)
            for value, variable in zip(inputs, equation.invars, strict=True)
        ]
        arrays = self._known_arrays(inputs)
        if arrays is not None and all(map(_is_fixed, shapes)) and name != "dim_as_value":
            made = equation.primitive.bind(*arrays, **params)
            made = made if equation.primitive.multiple_results else [made]
            return [_known(np.asarray(each)) for each in made]
        translation = getattr(self, f"_of_{name}", None)
        if translation is None:
            raise self._refusal(f"computes with {name}, which has no ONNX form here")
        made = translation(equation, *inputs)
        if isinstance(made, _Value):
            return [made]
        names = [made] if isinstance(made, str) else made
        return [_Value(tuple(shape), each) for each, shape in zip(names, shapes, strict=True)]

    def _spread(self, value: _Value, places: Sequence[int], rank: int) -> _Value:
        """A value with its dimensions at some places among new ones, along which it is equal."""
        shape = [1] * rank
        for place, dim in zip(places, value.shape, strict=True):
            shape[place] = dim
        return self._shaped(value, shape)

    def _shaped(self, value: _Value, shape: Sequence[Any]) -> _Value:
        """The same elements in another shape."""
        if tuple(shape) == value.shape:
            return value
        if value.array is not None:
            made = value.array.reshape(shape)
            if id(value.array) in self._names:  # which is one array's alone
                self.call(made, self._names.pop(id(value.array))[1])
            return _known(made)
        # One size may be left open, and follows from the others.
        sizes = [dim if isinstance(dim, int) else -1 for dim in shape]
        target = self._numbers(sizes) if sizes.count(-1) < 2 else self._sizes(shape)
        return _Value(tuple(shape), self.node("Reshape", [self.name_of(value), target]))

    def _local(self, equation: Any, inputs: Sequence[_Value]) -> _Value:
        """What is made element by element, with its axes in the tensor as an operand has them."""
        order = next((value.order for value in inputs if value.order), None)
        if order is not None:
            rank, there = len(order), np.argsort(order).tolist()
            inputs = [
                self._turned(self._shaped(v, (1,) * (rank - len(v.shape)) + v.shape), there)
                for v in inputs
            ]
        shape = _joined([value.shape for value in inputs])
        # Another operand has all axes.
        inputs = [
            self._shaped(value, _without_first_ones(value.shape))
            if self._is_known(value)
            else value
            for value in inputs
        ]
        made = _Value(shape, self._element(equation, inputs))
        return made if order is None else self._turned(made, order)

    def _element(self, equation: Any, inputs: Sequence[_Value]) -> str:
        """The name of a tensor of which each element is made of those at its place."""
        name, params = equation.primitive.name, equation.params
        dtype = equation.invars[0].aval.dtype
        names = [self.name_of(value) for value in inputs]
        match name:
            case "cbrt":
                root = self.node("Pow", [self.node("Abs", names), self._number(1 / 3, dtype)])
                return self.node("Mul", [self.node("Sign", names), root])
            case "clamp":
                least, x, most = names
                return self.node("Min", [self.node("Max", [x, least]), most])
            case "convert_element_type":
                return self._cast(names[0], dtype, params["new_dtype"])
            case "erfc":
                return self.node("Sub", [self._number(1, dtype), self.node("Erf", names)])
            case "exp2":
                return self.node("Pow", [self._number(2, dtype), *names])
            case "expm1":  # tanh(x / 2) (exp(x) + 1), which has digits where x is small, too
                half = self.node("Mul", [*names, self._number(0.5, dtype)])
                more = self.node("Add", [self.node("Exp", names), self._number(1, dtype)])
                return self.node("Mul", [self.node("Tanh", [half]), more])
            case "integer_pow":
                return self.node("Pow", [*names, self._number(params["y"], dtype)])
            case "is_finite":
                return self.node("Less", [self.node("Abs", names), self._number(np.inf, dtype)])
            case "log1p":
                return self.node("Log", [self.node("Add", [*names, self._number(1, dtype)])])
            case "ne":
                return self.node("Not", [self.node("Equal", names)])
            case "rem":
                return self.node("Mod", names, fmod=1)
            case "round":
                if params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
                    raise self._refusal("rounds halves, which ONNX does to even numbers alone")
                return self.node("Round", names)
            case "rsqrt":
                return self.node("Reciprocal", [self.node("Sqrt", names)])
            case "select_n":
                if dtype != np.bool_ or len(names) != 3:
                    raise self._refusal(f"selects by {dtype}, and ONNX by a truth value alone")
                signs = self._signs_of(*inputs) if self._is_qonnx else ""
                condition, no, yes = names
                bent = signs or self._bent(condition, no, yes, inputs[2].shape)
                return bent or self.node("Where", [condition, yes, no])
            case "shift_right_logical":
                return self.node("BitShift", names, direction="RIGHT")
            case "square":
                return self.node("Mul", [*names, *names])
        if name in _LOGICAL:
            return self.node(_LOGICAL[name][dtype != np.bool_], names)
        if name == "max" and 0.0 in map(self._number_in, names):
            return self.node("Relu", [each for each in names if self._number_in(each) != 0.0])
        return self.node(_ELEMENTWISE[name], names)

    def _number_in(self, name: str) -> float | None:
        """The real number that a tensor is, if it is known."""
        array = self._arrays.get(name)
        return cast(np.ndarray, array).item() if _is_real_number(array) else None

    def _bent(self, condition: str, no: str, yes: str, shape: tuple[Any, ...]) -> str:
        """The name of a function of two or three straight parts, if the choice between two values
        is one that ONNX has an operator for; or else "". The shape is of the value for yes."""
        operator, (x, *to) = self._made.get(condition, ("", ["", ""]))
        level = self._number_in(to[0]) if operator in _COMPARISONS else None
        if level is None:
            return ""
        above = operator.startswith("Greater")
        inner, inputs = self._made.get(no, ("", []))
        if above and level == 0 and yes == x and inner == "Mul" and x in inputs:
            slope = inputs[1 - inputs.index(x)]
            array = self._arrays.get(slope)
            if array is None or _joined([shape, array.shape]) != shape:
                return ""
            return self.node("PRelu", [x, slope])
        if self._number_in(yes) != level:
            return ""
        if no == x:
            return self.node("Min" if above else "Max", [x, yes])
        least = self._number_in(inputs[1]) if inner == "Max" and inputs[0] == x else None
        if above and least is not None and least <= level:
            return self.node("Clip", [x, inputs[1], yes])
        return ""

    def _signs_of(self, condition: _Value, no: _Value, yes: _Value) -> str:
        """The name of signs, as QONNX has them, if the choice between two values is one of signs;
        or else ""."""
        operator, (x, *to) = self._made.get(condition.name, ("", ["", ""]))
        if operator == "Not" and self._made.get(x) == ("Equal", [yes.name] * 2):
            # What is no number stays so; hardware has none.
            return no.name if no.shape == yes.shape else ""
        positive, negative = (yes, no) if operator.startswith("Greater") else (no, yes)
        arrays = positive.array, negative.array, self._arrays.get(to[0])
        if operator not in _COMPARISONS or not all(map(_is_real_number, arrays)):
            return ""
        high, low, zero = (cast(np.ndarray, array).item() for array in arrays)
        if zero != 0 or low != -high or high <= 0:
            return ""
        if operator in ("Greater", "LessOrEqual"):
            x = self.node("Sub", [x, self._number(bipolar.LEAST, np.float32)])
        return self._bipolar(x, high)

    # A method for each of the other primitives, by its name. They take the equation and the values
    # that it reads, and return the result, by its name or as a value, or the names of several.

    def _of_argmax(self, equation: Any, value: _Value, operator: str = "ArgMax") -> str:
        (axis,), dtype = equation.params["axes"], equation.params["index_dtype"]
        place = self.node(operator, [self.name_of(value)], axis=axis, keepdims=0)
        return self._cast(place, np.int64, dtype)

    def _of_argmin(self, equation: Any, value: _Value) -> str:
        return self._of_argmax(equation, value, "ArgMin")

    def _of_concatenate(self, equation: Any, *inputs: _Value) -> str:
        axis = equation.params["dimension"]
        return self.node("Concat", [self.name_of(value) for value in inputs], axis=axis)

    def _of_conv_general_dilated(self, equation: Any, images: _Value, kernel: _Value) -> _Value:
        params = equation.params
        numbers = params["dimension_numbers"]
        low, high = zip(*params["padding"], strict=True)
        if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
            raise self._refusal("convolves dilated images or groups of images, which ONNX does not")
        kernel = self._turned(kernel, numbers.rhs_spec)
        made = self.node(
            "Conv",
            [self.name_of(self._turned(images, numbers.lhs_spec)), self.name_of(kernel)],
            kernel_shape=list(kernel.shape[2:]),
            strides=list(params["window_strides"]),
            pads=[*low, *high],
            dilations=list(params["rhs_dilation"]),
            group=params["feature_group_count"],
        )
        return self._laid(equation, made, np.argsort(numbers.out_spec).tolist())

    def _of_cumsum(self, equation: Any, value: _Value) -> str:
        axis = self._number(equation.params["axis"], np.int64)
        reverse = int(equation.params["reverse"])
        return self.node("CumSum", [self.name_of(value), axis], reverse=reverse)

    def _of_dim_as_value(self, equation: Any) -> str:
        size = self.node("Squeeze", [self._size(equation.params["dim"]), self._numbers([0])])
        return self._cast(size, np.int64, equation.outvars[0].aval.dtype)

    def _of_dot_general(self, equation: Any, left: _Value, right: _Value) -> str:
        (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
        rows = [i for i in range(len(left.shape)) if i not in (*left_sum, *left_batch)]
        columns = [i for i in range(len(right.shape)) if i not in (*right_sum, *right_batch)]
        # MatMul takes rows of any shape where there are no batches. It is no Einsum, for in that
        # ONNX Runtime divides by the size of an empty batch.
        rows_of_left = ([*left_batch], rows) if left_batch else (rows,)
        a = self._grouped(left, *rows_of_left, left_sum)
        b = self._grouped(right, right_batch, right_sum, columns)
        product = self.node("MatMul", [self.name_of(a), self.name_of(b)])
        made = _Value((*a.shape[:-1], b.shape[-1]), product)
        return self.name_of(self._shaped(made, equation.outvars[0].aval.shape))

    def _of_dynamic_slice(self, equation: Any, value: _Value, *starts: _Value) -> _Value:
        sizes, inside = equation.params["slice_sizes"], {}
        for axis, (start, dim, size) in enumerate(zip(starts, value.shape, sizes, strict=True)):
            if dim == size:
                continue
            if not isinstance(dim, int):
                raise self._refusal("picks some images of the batch")
            if start.array is None:
                raise self._refusal("cuts where the images say")
            # Where it would stick out, JAX moves the window in.
            inside[axis] = min(max(int(start.array), 0), dim - size)
        return self._window(value, inside, sizes)

    def _of_gather(self, equation: Any, value: _Value, indices: _Value) -> _Value:
        numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
        axes, places = numbers.start_index_map, indices.array
        if places is None or numbers.operand_batching_dims:
            raise self._refusal("picks elements where the images say")
        places = places.astype(np.int64)
        for axis, along in zip(axes, np.moveaxis(places, -1, 0), strict=True):
            dim = value.shape[axis]
            if not isinstance(dim, int):
                raise self._refusal("picks some images of the batch")
            if along.min() < 0 or along.max() > dim - sizes[axis]:
                raise self._refusal(f"picks elements {along.min()} to {along.max()} of {dim}")
        if places.ndim == 1:
            cut = self._window(value, dict(zip(axes, places.tolist(), strict=True)), sizes)
            return self._shaped(cut, equation.outvars[0].aval.shape)
        (axis, *others), places = axes, places[..., 0]
        whole = (*value.shape[:axis], sizes[axis], *value.shape[axis + 1 :])
        if others or tuple(sizes) != whole:
            raise self._refusal("picks elements along several axes at once")
        new = range(axis, axis + places.ndim)
        if axis not in numbers.collapsed_slice_dims:
            places = places[..., None] + np.arange(sizes[axis])
        picked = self.node("Gather", [self.name_of(value), self._numbers(places)], axis=axis)
        rank = len(equation.outvars[0].aval.shape)
        kept, added = iter([i for i in range(rank) if i not in new]), iter(new)
        order = [next(kept if i in numbers.offset_dims else added) for i in range(rank)]
        return self._laid(equation, picked, order)

    def _grouped(self, value: _Value, kept: Sequence[int], *groups: Sequence[int]) -> _Value:
        """A value with some of its axes first, and behind them one for each group of the others."""
        turned = self._turned(value, [*kept, *itertools.chain(*groups)])
        sizes = [math.prod(value.shape[i] for i in group) for group in groups]
        return self._shaped(turned, (*turned.shape[: len(kept)], *sizes))

    def _of_pad(self, equation: Any, value: _Value, filling: _Value) -> _Value:
        low, high, between = zip(*equation.params["padding_config"], strict=True)
        if any(between):
            raise self._refusal("pads between elements, which ONNX does not")
        if not any((*low, *high)):
            return value
        name, axes = self._tensor(value)
        there = np.argsort(axes)
        pads = self._numbers([*np.take(low, there), *np.take(high, there)])
        made = self.node("Pad", [name, pads, self.name_of(filling)])
        return self._laid(equation, made, axes)

    def _reduce(self, operator: str, equation: Any, value: _Value) -> _Value:
        reduced, dtype = equation.params["axes"], equation.invars[0].aval.dtype
        name, axes = self._tensor(value)
        along = self._numbers([axes[axis] for axis in reduced])
        number = np.int32 if dtype == np.bool_ else dtype
        made = self.node(operator, [self._cast(name, dtype, number), along], keepdims=0)
        made = self._cast(made, number, dtype)
        left = [place for axis, place in enumerate(axes) if axis not in reduced]
        return self._laid(equation, made, np.argsort(np.argsort(left)).tolist())

    def _of_reduce_and(self, equation: Any, value: _Value) -> _Value:
        return self._reduce("ReduceMin", equation, value)

    def _of_reduce_max(self, equation: Any, value: _Value) -> _Value:
        return self._reduce("ReduceMax", equation, value)

    def _of_reduce_min(self, equation: Any, value: _Value) -> _Value:
        return self._reduce("ReduceMin", equation, value)

    def _of_reduce_or(self, equation: Any, value: _Value) -> _Value:
        return self._reduce("ReduceMax", equation, value)

    def _of_reduce_prod(self, equation: Any, value: _Value) -> _Value:
        return self._reduce("ReduceProd", equation, value)

    def _of_reduce_sum(self, equation: Any, value: _Value) -> _Value:
        return self._reduce("ReduceSum", equation, value)

    def _of_reduce_window_max(self, equation: Any, value: _Value) -> _Value:
        dilations = list(equation.params["window_dilation"][1:-1])
        return self._reduced("MaxPool", equation, value, dilations=dilations)

    def _of_reduce_window_min(self, equation: Any, value: _Value) -> _Value:
        name = self.node("Neg", [self._tensor(value)[0]])
        negative = _Value(value.shape, name, order=value.order)
        largest = self._of_reduce_window_max(equation, negative)
        return dataclasses.replace(largest, name=self.node("Neg", [largest.name]))

    def _of_reduce_window_sum(self, equation: Any, value: _Value) -> _Value:
        params = equation.params
        if set(params["window_dilation"]) != {1}:
            raise self._refusal("adds up windows with gaps")
        mean = self._reduced("AveragePool", equation, value, count_include_pad=1)
        count = self._number(math.prod(params["window_dimensions"]), equation.invars[0].aval.dtype)
        return dataclasses.replace(mean, name=self.node("Mul", [mean.name, count]))

    def _reduced(self, operator: str, equation: Any, value: _Value, **attributes: Any) -> _Value:
        """A reduction of windows over the axes between the first one and the last."""
        params = equation.params
        window, strides = params["window_dimensions"], params["window_strides"]
        low, high = zip(*params["padding"], strict=True)
        if len(window) < 3 or {window[0], window[-1], strides[0], strides[-1]} != {1}:
            raise self._refusal("reduces windows of images or channels")
        if any(pad >= size for pad, size in zip((*low, *high), window * 2, strict=True) if pad):
            raise self._refusal("reduces windows that may lie outside of the images")
        if set(params["base_dilation"]) != {1}:
            raise self._refusal("reduces windows of dilated images")
        windows = _Windows(window, strides, params["padding"])
        return self._pooled(operator, equation, windows, value, **attributes)

    def _pooled(
        self, operator: str, equation: Any, windows: _Windows, value: _Value, **attributes: Any
    ) -> _Value:
        low, high = zip(*windows.padding, strict=True)
        inner, rank = slice(1, -1), len(low)
        images = self._turned(value, [0, rank - 1, *range(1, rank - 1)])
        made = self.node(
            operator,
            [self.name_of(images)],
            kernel_shape=list(windows.sizes[inner]),
            strides=list(windows.strides[inner]),
            pads=[*low[inner], *high[inner]],
            **attributes,
        )
        return self._laid(equation, made, [0, *range(2, rank), 1])

    def _of_reshape(self, equation: Any, value: _Value) -> _Value:
        return self._shaped(value, equation.outvars[0].aval.shape)

    _of_squeeze = _of_reshape

    def _of_rev(self, equation: Any, value: _Value) -> _Value:
        axes = equation.params["dimensions"]
        ends = [-1] * len(axes), [-_END] * len(axes), [-1] * len(axes)
        return self._cut(value, value.shape, axes, *ends)

    def _of_slice(self, equation: Any, value: _Value) -> _Value:
        params = equation.params
        strides = params["strides"] or [1] * len(value.shape)
        parts = zip(
            value.shape, params["start_indices"], params["limit_indices"], strides, strict=True
        )
        cuts = [
            (axis, start, limit, stride)
            for axis, (dim, start, limit, stride) in enumerate(parts)
            if (start, limit, stride) != (0, dim, 1)
        ]
        shape = equation.outvars[0].aval.shape
        return self._cut(value, shape, *zip(*cuts, strict=True)) if cuts else value

    def _window(self, value: _Value, starts: Mapping[int, int], sizes: Sequence[Any]) -> _Value:
        """The elements from some places on along some axes, and from the first on along others."""
        cuts = [
            (axis, starts.get(axis, 0), starts.get(axis, 0) + size, 1)
            for axis, (dim, size) in enumerate(zip(value.shape, sizes, strict=True))
            if size != dim
        ]
        return self._cut(value, sizes, *zip(*cuts, strict=True)) if cuts else value

    def _cut(
        self, value: _Value, shape: Sequence[Any], axes: Any, starts: Any, ends: Any, steps: Any
    ) -> _Value:
        name, places = self._tensor(value)
        numbers = starts, ends, [places[axis] for axis in axes], steps
        made = self.node("Slice", [name, *map(self._numbers, numbers)])
        return _Value(tuple(shape), made, order=value.order)

    def _of_split(self, equation: Any, value: _Value) -> list[str]:
        params = equation.params
        names = [self._fresh() for _ in params["sizes"]]
        inputs = [self.name_of(value), self._numbers(params["sizes"])]
        self.node("Split", inputs, outputs=names, axis=params["axis"])
        return names

    def _of_stack(self, equation: Any, *inputs: _Value) -> str:
        axis = equation.params["axis"]
        place = self._numbers([axis])
        parts = [self.node("Unsqueeze", [self.name_of(value), place]) for value in inputs]
        return self.node("Concat", parts, axis=axis)

    def _of_tile(self, equation: Any, value: _Value) -> str:
        return self.node("Tile", [self.name_of(value), self._numbers(equation.params["reps"])])

    def _of_transpose(self, equation: Any, value: _Value) -> _Value:
        return self._turned(value, equation.params["permutation"])

    def _of_unstack(self, equation: Any, value: _Value) -> list[str]:
        axis = equation.params["axis"]
        places = [_known(np.asarray(i, np.int64)) for i in range(value.shape[axis])]
        inputs = [[self.name_of(value), self.name_of(place)] for place in places]
        return [self.node("Gather", each, axis=axis) for each in inputs]

    def _turned(self, value: _Value, order: Sequence[int]) -> _Value:
        """A value with its axes in another order."""
        array = value.array
        if array is None:
            shape = tuple(value.shape[i] for i in order)
            return self._ordered(shape, value.name, map(value.place, order))
        turned = array.transpose(order)
        if id(array) in self._names:
            self.call(turned, self._names.pop(id(array))[1])
        if id(array) in self._signs:
            self._signs[id(turned)] = turned
        return _known(turned)

    def _tensor(self, value: _Value) -> tuple[str, list[int]]:
        """The name of a value's tensor, and where that has the value's axes."""
        name = self.name_of(value) if value.order is None else value.name
        return name, [value.place(axis) for axis in range(len(value.shape))]

    def _laid(self, equation: Any, name: str, order: Sequence[int]) -> _Value:
        """An equation's result, whose axis i is axis order[i] of a tensor."""
        return self._ordered(equation.outvars[0].aval.shape, name, order)

    def _ordered(self, shape: Sequence[Any], name: str, order: Iterable[int]) -> _Value:
        """A value whose axis i is axis order[i] of a tensor."""
        places = tuple(order)
        if places == tuple(range(len(places))):
            return _Value(tuple(shape), name)
        value = _Value(tuple(shape), name, order=places)
        # Nothing is moved before an operator asks for it, and mostly none does. Some of QONNX's
        # tools expect channels last wherever numbers of channels are added or multiplied.
        return _Value(value.shape, self.name_of(value)) if self._is_qonnx else value


def _windows(jaxpr: Any) -> _Windows | None:
    """The windows of images whose largest values a program takes, as `ops.max_pool` does; None for
    other programs."""
    equations, names = list(jaxpr.eqns), [each.primitive.name for each in jaxpr.eqns]
    if names.count("slice") < 2 or len(jaxpr.invars) != 1 or len(jaxpr.outvars) != 1:
        return None
    (source,), (result,) = jaxpr.invars, jaxpr.outvars
    padding = ((0, 0, 0),) * len(source.aval.shape)
    if names[0] == "pad":
        pad = equations.pop(0)
        filling, padding = pad.invars[1], pad.params["padding_config"]
        is_border = isinstance(filling, jex.Literal) and filling.val == -np.inf
        if not is_border or pad.invars[0] is not source or any(gap for *_, gap in padding):
            return None
        (source,) = pad.outvars
    shifts = [each for each in equations if each.primitive.name == "slice"]
    largest = [each for each in equations if each.primitive.name == "max"]
    # Of n slices n - 1 maxima take each, and each other, once.
    taken = [variable for each in largest for variable in each.invars]
    made = [variable for each in (*shifts, *largest) for variable in each.outvars]
    if len(shifts) + len(largest) != len(equations) or made[-1] is not result:
        return None
    if len(taken) != len(made) - 1 or set(map(id, taken)) != set(map(id, made[:-1])):
        return None
    starts = sorted(each.params["start_indices"] for each in shifts)
    sizes = tuple(last + 1 for last in map(max, zip(*starts, strict=True)))
    strides = {each.params["strides"] for each in shifts}
    if any(each.invars[0] is not source for each in shifts) or len(strides) != 1:
        return None
    step = strides.pop() or (1,) * len(sizes)
    windows = _Windows(sizes, step, tuple((low, high) for low, high, _ in padding))
    axes = list(zip(source.aval.shape, result.aval.shape, sizes, step, padding, strict=True))
    # Every window of the rows and columns, of each image and channel.
    if len(sizes) < 3 or starts != list(np.ndindex(sizes)):
        return None
    for dim, count, size, stride, _ in axes[1:-1]:
        if count != (dim - size) // stride + 1:
            return None
    if any((size, stride) != (1, 1) for *_, size, stride, _ in (axes[0], axes[-1])):
        return None
    if any(not 0 <= pad < size for *_, size, _, (*pads, _) in axes for pad in pads):
        return None
    return windows


# Those by which signs are told.
_COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
# Beyond the end of any axis.
_END = 2**31


def _known(array: np.ndarray) -> _Value:
    return _Value(array.shape, array=array.astype(_wide(array.dtype), copy=False))


def _wide(dtype: Any) -> np.dtype:
    """What stands for a type: float32 for narrower ones, with which few runtimes compute."""
    is_real = jnp.issubdtype(dtype, jnp.floating)
    return np.dtype(np.float32) if is_real else np.dtype(dtype)


def _is_real_number(array: np.ndarray | None) -> bool:
    return array is not None and array.size == 1 and array.dtype == np.float32


def _is_fixed(shape: Sequence[Any]) -> bool:
    return all(isinstance(dim, int) for dim in shape)


def _joined(shapes: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The shape of what is made of elements of several shapes, where 1 fits all."""
    rank = max(map(len, shapes))
    long = [shape for shape in shapes if len(shape) == rank]
    return tuple(next((d for d in dims if not _is_one(d)), 1) for dims in zip(*long, strict=True))


def _without_first_ones(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(itertools.dropwhile(_is_one, shape))


def _is_one(dim: Any) -> bool:
    return isinstance(dim, int) and dim == 1
