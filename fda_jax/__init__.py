"""fda_jax: train, study and ship binary neural networks in JAX."""

__version__ = "0.1.0"
