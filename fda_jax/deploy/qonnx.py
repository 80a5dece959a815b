"""QONNX: what says in an ONNX model which numbers are binary."""

from typing import Any

import numpy as np

# Its operator (x, scale): scale where x is at least 0, and -scale elsewhere.
OPERATOR, DOMAIN = "BipolarQuant", "qonnx.custom_op.general"
# Its sign of 0 is 1, ours -1: so much is subtracted before, the least that also XLA and hardware
# without subnormal numbers tell from 0.
LEAST = np.finfo(np.float32).tiny


def definition(opset: int) -> Any:
    """What the operator computes, in ONNX's own of a version; an `onnx.FunctionProto`."""
    from onnx import parser

    return parser.parse_function(f"""
        <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
        {OPERATOR} (x, scale) => (y) {{
            zero = Constant <value = float {{0}}> ()
            is_negative = Less (x, zero)
            negative = Neg (scale)
            y = Where (is_negative, negative, scale)
        }}
    """)


def annotation(tensor: str, datatype: str) -> Any:
    """The note that a tensor's float32 numbers are of a type of QONNX's."""
    import onnx

    entry = onnx.StringStringEntryProto(key="finn_datatype", value=datatype)
    return onnx.TensorAnnotation(tensor_name=tensor, quant_parameter_tensor_names=[entry])


def split(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A kernel whose filters have two values each as scale * signs + middle.

    Args:
      kernel: float32 (..., filters).

    Returns:
      signs, -1 or 1, of the kernel's shape; scale >= 0 and middle, (filters,). Scale is of shape ()
      where it is the same for all.
    """
    others = tuple(range(kernel.ndim - 1))
    low, high = kernel.min(others), kernel.max(others)
    half = np.float32(0.5)
    # Where all weights of a filter are equal, the other value is the negative.
    scale = np.where(low == high, abs(high), half * high - half * low)
    middle = np.where(low == high, np.zeros_like(high), half * high + half * low)
    signs = np.where(kernel > middle, np.float32(1), np.float32(-1))
    is_same = np.all(scale == scale.max())
    return signs, scale.max().reshape(()) if is_same else scale, middle
