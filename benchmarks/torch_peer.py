"""ResNet-20 and VGG-Small of FDA-BNN in PyTorch, written for its speed on a CPU.

The arithmetic is that of fda_jax's networks and methods at their defaults, so that both have the
same losses from the same weights. Parameters bear fda_jax's names, paths joined by "/".
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

METHODS = ("ste", "fda", "fda_literal")
TOTAL_STEPS = 1000
OMEGA, TERMS_START, TERMS_END = 0.1, 10, 19
NOISE_SCALE, SHORTCUT_SLOPE = 0.1, 0.1
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
DECAYING = ("latent_kernel", "stem/kernel", "classifier/kernel", "classifier/bias")


class _Binarize(torch.autograd.Function):
    """sign(x); backward the clipped straight-through estimator.

    torch.sign(0) is 0 and not -1, but no other sign takes one pass.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return within_window(g, x)


class Scaled(torch.autograd.Function):
    """Signs times their scale; backward the identity, DoReFa-Net's Eq. 8."""

    @staticmethod
    def forward(signs: Tensor, scale: Tensor) -> Tensor:
        """The product."""
        return signs * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on to the signs."""
        return g, None


class GradientTimes(torch.autograd.Function):
    """x itself; backward multiplied by a scale, which the noise module of weights is to see."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        """X."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keep the scale."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Multiply by it."""
        (scale,) = ctx.saved_tensors
        return g * scale, None


class _PReLU(torch.autograd.Function):
    """max(x, 0) + slope min(x, 0); the library's own makes a slope's gradient for every pixel."""

    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return functional.leaky_relu(x, slope.item())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        d_x = torch.ops.aten.leaky_relu_backward(g, x, slope.item(), False)
        return d_x, torch.dot(flat(x).clamp(max=0.0), flat(g))


class _NoisyBinarize(torch.autograd.Function):
    """sign(t) + alpha (relu(t W1) W2 + a sin(t)) for rows t; backward with the Fourier slope.

    Only t and the narrow relu(t W1) are kept.
    """

    @staticmethod
    def forward(
        ctx: Any, t: Tensor, w1: Tensor, w2: Tensor, alpha: Tensor, terms: Tensor | int
    ) -> Tensor:
        hidden = torch.mm(t, w1).relu_()
        ctx.save_for_backward(t, w1, w2, alpha, hidden)
        ctx.terms = terms
        noisy = torch.sin(t).mul_(alpha * SHORTCUT_SLOPE).add_(torch.sign(t))
        return noisy.addmm_(hidden, alpha * w2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        t, w1, w2, alpha, hidden = ctx.saved_tensors
        slope = literal_slope if isinstance(ctx.terms, int) else closed_slope
        d_hidden = torch.mm(g, (alpha * w2).T) * (hidden > 0)
        d_t = within_window(slope(t, ctx.terms), t)
        d_t.add_(torch.cos(t).mul_(alpha * SHORTCUT_SLOPE)).mul_(g).addmm_(d_hidden, w1.T)
        return d_t, torch.mm(t.T, d_hidden), torch.mm(hidden.T, g).mul_(alpha), None, None


def flat(x: Tensor) -> Tensor:
    """A channels-last image as a vector."""
    return x.permute(0, 2, 3, 1).reshape(-1)


def within_window(g: Tensor, x: Tensor) -> Tensor:
    """G where |x| < 1, else 0, in one pass."""
    return torch.ops.aten.hardtanh_backward(g, x, -1.0, 1.0)


def closed_slope(x: Tensor, terms: Tensor) -> Tensor:
    """(2 omega / pi) sin(2 N omega x) / sin(omega x) for |omega x| < pi."""
    size = x.abs().clamp_(min=1e-6)  # the slope is even, and 0 / 0 at 0
    top = (size * (2.0 * OMEGA * terms)).sin_()
    return top.div_(size.mul_(OMEGA).sin_()).mul_(2.0 * OMEGA / math.pi)


def literal_slope(x: Tensor, terms: int) -> Tensor:
    """(4 omega / pi) sum_{i < N} cos((2i + 1) omega x)."""
    total = torch.cos(x * OMEGA)
    for i in range(1, terms):
        total.add_(torch.cos(x * ((2 * i + 1) * OMEGA)))
    return total.mul_(4.0 * OMEGA / math.pi)


class Trainer:
    """Training by SGD with momentum 0.9, rate 0.1 (cosine) and weight decay 1e-4.

    Args:
      network: name of `NETWORKS`.
      method: of `METHODS`.
      variables: "params/..." and "batch_stats/..." of fda_jax by their paths.
      images: uint8 (batch, height, width, channels).
      labels: whole numbers (batch,).
      compiled: run forward and backward through torch.compile.
    """

    def __init__(
        self,
        network: str,
        method: str,
        variables: Mapping[str, np.ndarray],
        images: np.ndarray,
        labels: np.ndarray,
        *,
        compiled: bool,
    ) -> None:
        self._params = _tensors(variables, "params/")
        self._statistics = _tensors(variables, "batch_stats/")
        self._dtype = self._params["stem/kernel"].dtype
        self._images = torch.tensor(images).permute(0, 3, 1, 2)
        self._labels = torch.tensor(labels, dtype=torch.long)
        self._network, self._method, self._steps = NETWORKS[network], method, 0
        self._loss = (
            torch.compile(self._plain_loss, dynamic=False) if compiled else self._plain_loss
        )
        groups: dict[float, list[Tensor]] = {1e-4: [], 0.0: []}
        for name, parameter in self._params.items():
            groups[1e-4 if name.endswith(DECAYING) else 0.0].append(parameter.requires_grad_())
        self._optimizer = torch.optim.SGD(
            [{"params": group, "weight_decay": decay} for decay, group in groups.items()],
            lr=0.1,
            momentum=0.9,
            fused=True,
        )

    def step(self) -> float:
        """Take one step; its loss."""
        loss = self.backward()
        for group in self._optimizer.param_groups:
            group["lr"] = 0.1 * self._half_cosine()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        return loss

    def backward(self) -> float:
        """Compute the loss, and the gradient of it."""
        stages = TERMS_END - TERMS_START + 1
        stage = min(self._steps * stages // TOTAL_STEPS, stages - 1)
        terms = TERMS_START + stage
        alpha = torch.tensor(NOISE_SCALE * self._half_cosine(), dtype=self._dtype)
        # A literal sum is unrolled; the closed form takes any number of terms.
        literal = self._method == "fda_literal"
        loss = self._loss(alpha, terms if literal else torch.tensor(terms, dtype=self._dtype))
        loss.backward()
        return loss.item()

    def gradients(self) -> dict[str, np.ndarray]:
        """Gradients by fda_jax's names, in its layout."""
        return {
            name: (p.grad.permute(2, 3, 1, 0) if p.ndim == 4 else p.grad).numpy()
            for name, p in self._params.items()
            if p.grad is not None
        }

    def _half_cosine(self) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * self._steps / TOTAL_STEPS))

    def _plain_loss(self, alpha: Tensor, terms: Tensor | int) -> Tensor:
        x = self._images.to(self._dtype)
        x = x.mul_(1.0 / (255.0 * PIXEL_STD)).sub_(PIXEL_MEAN / PIXEL_STD)
        logits = self._network(
            _Layers(self._params, self._statistics, self._method, alpha, terms), x
        )
        return functional.cross_entropy(logits, self._labels)


class _Layers:
    """Layers by the names of their parameters."""

    def __init__(
        self,
        params: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        method: str,
        alpha: Tensor,
        terms: Tensor | int,
    ) -> None:
        self._params, self._statistics, self._method = params, statistics, method
        self._alpha, self._terms = alpha, terms

    def stem(self, x: Tensor) -> Tensor:
        y = functional.conv2d(x, self._params["stem/kernel"], padding=1)
        return self.norm(y, "stem_norm")

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = (self._statistics[f"{name}/{part}"] for part in ("mean", "var"))
        scale, bias = (self._params[f"{name}/{part}"] for part in ("scale", "bias"))
        return functional.batch_norm(x, mean, variance, scale, bias, training=True, eps=1e-5)

    def prelu(self, x: Tensor, name: str) -> Tensor:
        slope = self._params[f"{name}/negative_slope"]
        if torch.compiler.is_compiling():
            return functional.prelu(x, slope.reshape(1))  # is fused with what surrounds it
        return _PReLU.apply(x, slope)

    def binary_conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        w = self._params[f"{name}/latent_kernel"]
        scale = w.detach().abs().mean()
        signs = self._binarize_filters(w, f"{name}/weight/noise", scale)
        return functional.conv2d(
            self._binarize(x, f"{name}/activation/noise"),
            Scaled.apply(signs, scale),
            stride=stride,
            padding=1,
        )

    def classifier(self, x: Tensor) -> Tensor:
        return torch.addmm(self._params["classifier/bias"], x, self._params["classifier/kernel"])

    def _binarize(self, x: Tensor, noise: str) -> Tensor:
        if self._method == "ste":
            return _Binarize.apply(x)
        pixels = x.permute(0, 2, 3, 1)
        noisy = self._noisy(pixels.reshape(-1, pixels.shape[-1]), noise)
        return noisy.reshape(pixels.shape).permute(0, 3, 1, 2)

    def _binarize_filters(self, w: Tensor, noise: str, scale: Tensor) -> Tensor:
        if self._method == "ste":
            return _Binarize.apply(w)
        filters = w.permute(0, 2, 3, 1)
        noisy = self._noisy(filters.reshape(len(w), -1), noise, scale)
        return noisy.reshape(filters.shape).permute(0, 3, 1, 2)

    def _noisy(self, rows: Tensor, noise: str, scale: Tensor | None = None) -> Tensor:
        w1, w2 = self._params[f"{noise}/w1"], self._params[f"{noise}/w2"]
        if scale is not None:
            w1, w2 = GradientTimes.apply(w1, scale), GradientTimes.apply(w2, scale)
        return _NoisyBinarize.apply(rows, w1, w2, self._alpha, self._terms)


class Predictor(torch.nn.Module):
    """A trained network that answers, binarized by the clipped estimator's or FDA-BNN's rule.

    Args:
      network: name of `NETWORKS`.
      variables: "params/..." and "batch_stats/..." of fda_jax by their paths.
      is_binary: False takes the latent weights as they are, and no sign of activations.
    """

    def __init__(
        self, network: str, variables: Mapping[str, np.ndarray], *, is_binary: bool
    ) -> None:
        super().__init__()
        self._network, self._is_binary = NETWORKS[network], is_binary
        for name, value in _tensors(variables, "params/").items():
            if is_binary and name.endswith("latent_kernel"):
                value = torch.where(value > 0, 1.0, -1.0) * value.abs().mean()
            self.register_buffer(name.replace("/", ":"), value)
        for name, value in _tensors(variables, "batch_stats/").items():
            self.register_buffer(name.replace("/", ":"), value)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of uint8 images (batch, height, width, channels)."""
        x = images.permute(0, 3, 1, 2).to(torch.float32)
        x = x.mul_(1.0 / (255.0 * PIXEL_STD)).sub_(PIXEL_MEAN / PIXEL_STD)
        named = {name.replace(":", "/"): buffer for name, buffer in self.named_buffers()}
        return self._network(_TrainedLayers(named, is_binary=self._is_binary), x)


class _TrainedLayers(_Layers):
    """Layers of inference: running statistics, kernels that are binary already."""

    def __init__(self, named: Mapping[str, Tensor], *, is_binary: bool) -> None:
        super().__init__(named, named, "ste", torch.zeros(()), 0)
        self._is_binary = is_binary

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, scale, bias = (
            self._params[f"{name}/{part}"] for part in ("mean", "var", "scale", "bias")
        )
        return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=1e-5)

    def prelu(self, x: Tensor, name: str) -> Tensor:
        return functional.prelu(x, self._params[f"{name}/negative_slope"].reshape(1))

    def binary_conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = self._params[f"{name}/latent_kernel"]
        # torch.sign(0) is 0 and not -1, but no other sign takes one pass.
        inputs = torch.sign(x) if self._is_binary else x
        return functional.conv2d(inputs, kernel, stride=stride, padding=1)


def resnet20(layers: _Layers, x: Tensor) -> Tensor:
    x = layers.stem(x)
    for stage in (1, 2, 3):
        for block in (1, 2, 3):
            name = f"stage{stage}_block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            shortcut = option_a(x) if stride == 2 else x
            for i, s in ((1, stride), (2, 1)):
                x = layers.binary_conv(x, f"{name}/conv{i}", s)
                x = layers.norm(layers.prelu(x, f"{name}/prelu{i}"), f"{name}/norm{i}")
            x = x + shortcut
    return layers.classifier(x.relu().mean((2, 3)))


def option_a(x: Tensor) -> Tensor:
    """Every second pixel, half as many zero channels on both sides."""
    new = x.shape[1] // 2
    return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, new, new))


def vgg_small(layers: _Layers, x: Tensor) -> Tensor:
    x = functional.hardtanh(layers.stem(x))
    for i in range(2, 7):
        x = layers.binary_conv(x, f"conv{i}")
        if i % 2 == 0:
            x = functional.max_pool2d(x, 2)
        x = functional.hardtanh(layers.norm(x, f"norm{i}"))
    return layers.classifier(x.permute(0, 2, 3, 1).flatten(1))


NETWORKS: Mapping[str, Callable[[_Layers, Tensor], Tensor]] = {
    "resnet20": resnet20,
    "vgg_small": vgg_small,
}


def _tensors(variables: Mapping[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """Tensors by their names without the prefix; kernels (h, w, in, out) become channels-last."""
    named = {
        key.removeprefix(prefix): torch.tensor(value)
        for key, value in variables.items()
        if key.startswith(prefix)
    }
    return {
        name: value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        if value.ndim == 4
        else value
        for name, value in named.items()
    }
