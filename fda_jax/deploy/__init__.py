"""Floor 3: networks as they are shipped, one bit for each binary weight."""

from fda_jax.deploy.freezing import freeze, to_onnx
from fda_jax.deploy.network import PackedNetwork, load

__all__ = ["PackedNetwork", "freeze", "load", "to_onnx"]
