"""Vision transformers with binary linear layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fda_jax.layers import BinaryDense, Method, make_method, nonlinearity
from fda_jax.models.common import check_images, classifier
from fda_jax.ops.derivatives import broadcast_like

# Standard deviation of the initial class token and position embeddings. DeiT's 0.02 would drown in
# the blocks' outputs, which the normalisations behind binary layers bring to a variance of 1.
EMBEDDING_STD = 0.5


class VisionTransformer(nn.Module):
    """Vision transformer whose linear layers are binary, its attention and its two ends real.

    Layout: patches -> dense, before them a class token, plus position embeddings; blocks; LN ->
    dense on the class token. A block is x + project(attend(q, k, v of LN(x))) and then
    x + shrink(GELU(widen(LN(x)))), the six of them binary; a method may bring another nonlinearity
    than GELU. Source: DeiT (arXiv 2012.12877), whose Tiny has width 192, depth 12 and 3 heads;
    embeddings, norms and head real as in PARQ's binary DeiT (arXiv 2503.15748), section 5.3.

    Each binary layer has a layer normalisation on both sides, of which DeiT has those on block
    inputs alone. In front, it centres what the sign sees: GELU's outputs crowd just below 0.
    Behind, it stands in place of DeiT's bias, as a batch normalisation behind every binary
    convolution: without it, weights of +-1 would saturate the softmax.

    Attributes:
      num_classes: number of logits.
      method: how the linear layers become binary.
      patch_px: height and width of a patch in pixels; divides those of the image.
      width: features of a token, a multiple of `num_heads`.
      depth: number of blocks.
      num_heads: of the attention.
      mlp_ratio: features of the hidden layer of a block per feature of a token.
      dtype: of the computation; parameters and the softmax stay float32.
      axis_name: unused; there are no batch statistics to average.
    """

    num_classes: int
    method: str | Method
    patch_px: int = 4
    width: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        images_bhwc: jax.Array,
        *,
        train: bool = False,
        progress: jax.Array | float | None = None,
    ) -> jax.Array:
        """Return float32 logits (batch, classes) of normalised images.

        Training needs `progress`, its finished share.
        """
        check_images(images_bhwc)
        if images_bhwc.shape[1] % self.patch_px or images_bhwc.shape[2] % self.patch_px:
            raise ValueError(
                f"images are {images_bhwc.shape[1]} by {images_bhwc.shape[2]} pixels, which "
                f"patches of {self.patch_px} do not divide: crop or resize them, or change patch_px"
            )
        patches = nn.Conv(
            self.width,
            (self.patch_px, self.patch_px),
            strides=self.patch_px,
            padding="VALID",
            dtype=self.dtype,
            name="stem",
        )(images_bhwc)
        batch, rows, columns, _ = patches.shape
        x = patches.reshape(batch, rows * columns, self.width)
        init = nn.initializers.normal(EMBEDDING_STD)
        token = self.param("class_token", init, (1, 1, self.width), jnp.float32)
        token = broadcast_like(token, jax.lax.slice_in_dim(x, 0, 1, axis=1))
        x = jnp.concatenate([token, x], axis=1)
        position = self.param("position_embedding", init, (1, *x.shape[1:]), jnp.float32)
        x = x + broadcast_like(position, x)
        for block in range(self.depth):
            x = EncoderBlock(
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                method=self.method,
                dtype=self.dtype,
                name=f"block{block + 1}",
            )(x, train=train, progress=progress)
        x = jax.lax.index_in_dim(x, 0, axis=1, keepdims=False)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        return classifier(self.num_classes)(x)


class EncoderBlock(nn.Module):
    """Attention and two dense layers, each inside a shortcut, on normalised tokens.

    Attributes:
      num_heads: divides the width.
      mlp_ratio: width of the hidden layer over that of a token.
      method: how the six linear layers become binary.
      dtype: of the computation.

    Raises:
      ValueError: the heads do not divide the width.
    """

    num_heads: int
    mlp_ratio: int
    method: str | Method
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, progress: jax.Array | float | None
    ) -> jax.Array:
        """Map (batch, tokens, width) to the same shape."""
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"{self.num_heads} heads do not divide a width of {width}: use e.g. a width of "
                f"{self.num_heads * max(1, round(width / self.num_heads))}"
            )

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(dtype=self.dtype, name=f"{name}_norm")

        def linear(name: str, features: int, x: jax.Array) -> jax.Array:
            layer = BinaryDense(features, self.method, self.dtype, name=name)
            return norm(name)(layer(x, train=train, progress=progress))

        tokens = norm("attention")(x)
        heads = (*x.shape[:2], self.num_heads, width // self.num_heads)
        query, key, value = (
            linear(name, width, tokens).reshape(heads) for name in ("query", "key", "value")
        )
        mixed = attend(query, key, value).reshape(x.shape)
        x = x + linear("project", width, norm("mixed")(mixed))
        hidden = linear("widen", self.mlp_ratio * width, norm("mlp")(x))
        hidden = nonlinearity(make_method(self.method).nonlinearity, 1, default="gelu")(hidden)
        return x + linear("shrink", width, norm("hidden")(hidden))


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Scaled dot-product attention, softmax(q k / sqrt(features)) v for each head.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), Eq. 1; the softmax in float32.

    Args:
      query: (batch, tokens, heads, features).
      key: likewise.
      value: likewise.

    Returns:
      Array shaped and typed like `query`.
    """
    scores = jnp.einsum("bqhf,bkhf->bhqk", query, key).astype(jnp.float32)
    weights = jax.nn.softmax(scores / jnp.sqrt(query.shape[-1]), axis=-1)
    return jnp.einsum("bhqk,bkhf->bqhf", weights.astype(value.dtype), value)
