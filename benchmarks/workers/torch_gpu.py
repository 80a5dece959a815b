"""Worker of `sides`: the same training in PyTorch, written for its speed on one CUDA device.

The data set lies on the device and is cropped and flipped there; torch.compile with fused kernels
of the whole forward and backward pass, channels last, bfloat16 by autocast (float32 by TF32), a
fused optimizer, and no waiting for the device inside a call. Attributes bear fda_jax's names.

python benchmarks/workers/torch_gpu.py JSON, the fields of `jax_call.Task`
"""

# ruff: noqa: D102  # the forward method of a module does what the module says

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import sides
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_peer import GradientTimes, Scaled

CLASSES, TOTAL_STEPS = 10, 1000
OMEGA, TERMS_START, TERMS_END = 0.1, 10, 19
NOISE_SCALE, SHORTCUT_SLOPE, REDUCTION = 0.1, 0.1, 64
PIXEL_MEAN, PIXEL_STD, CROP_PX = 0.5, 0.25, 4
# Below this angle the slope equals its peak to float32 accuracy.
AT_PEAK = 1e-6


class FourierSign(torch.autograd.Function):
    """sign(x); backward the truncated Fourier slope in |x| <= 1."""

    @staticmethod
    def forward(x: Tensor, terms: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, terms = ctx.saved_tensors
        theta = (OMEGA * x.float()).abs().clamp(min=AT_PEAK)
        slope = (2.0 * OMEGA / math.pi) * torch.sin(2.0 * terms * theta) / torch.sin(theta)
        return torch.where(x.abs() > 1.0, 0.0, g.float() * slope).to(g.dtype), None


class Noise(nn.Module):
    """relu(t W1) W2 + a sin(t) for vectors t in the last axis."""

    def __init__(self, features: int) -> None:
        super().__init__()
        narrow = features // REDUCTION if features >= REDUCTION else features // 4
        hidden = max(1, narrow)
        self.w1 = nn.Parameter(torch.randn(features, hidden) / math.sqrt(features))
        self.w2 = nn.Parameter(torch.randn(hidden, features) / math.sqrt(hidden))

    def forward(self, t: Tensor, scale: Tensor | None) -> Tensor:
        w1, w2 = self.w1, self.w2
        if scale is not None:
            w1, w2 = GradientTimes.apply(w1, scale), GradientTimes.apply(w2, scale)
        return (t @ w1).relu() @ w2 + SHORTCUT_SLOPE * torch.sin(t)


class Quantizer(nn.Module):
    """sign(t) + alpha e(t) for vectors t in the last axis."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.noise = Noise(features)

    def forward(
        self, t: Tensor, alpha: Tensor, terms: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        return FourierSign.apply(t, terms) + alpha.to(t.dtype) * self.noise(t, scale)


class BinaryConv(nn.Module):
    """Binary 3x3 convolution with FDA-BNN's quantizers."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.latent_kernel = nn.Parameter(he_normal(features, inputs, 3))
        self.activation = Quantizer(inputs)
        self.weight = Quantizer(9 * inputs)

    def forward(self, x: Tensor, alpha: Tensor, terms: Tensor) -> Tensor:
        w = self.latent_kernel
        pixels = self.activation(x.permute(0, 2, 3, 1), alpha, terms).permute(0, 3, 1, 2)
        rows, scale = w.permute(0, 2, 3, 1), w.detach().abs().mean()
        filters = self.weight(rows.reshape(len(w), -1), alpha, terms, scale).reshape(rows.shape)
        kernel = Scaled.apply(filters.permute(0, 3, 1, 2), scale)
        return functional.conv2d(pixels, kernel.to(x.dtype), stride=self.stride, padding=1)


class PReLU(nn.Module):
    """One slope for the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.negative_slope = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.negative_slope.to(x.dtype) * x)


class PlainBlock(nn.Module):
    """Two binary convolutions inside one shortcut, each with PReLU and BN behind it."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, features - inputs
        self.conv1 = BinaryConv(inputs, features, stride)
        self.conv2 = BinaryConv(features, features, 1)
        self.prelu1, self.prelu2 = PReLU(), PReLU()
        self.norm1, self.norm2 = nn.BatchNorm2d(features), nn.BatchNorm2d(features)

    def forward(self, x: Tensor, alpha: Tensor, terms: Tensor) -> Tensor:
        shortcut = self._option_a(x)
        x = self.norm1(self.prelu1(self.conv1(x, alpha, terms)))
        x = self.norm2(self.prelu2(self.conv2(x, alpha, terms)))
        return x + shortcut

    def _option_a(self, x: Tensor) -> Tensor:
        if not self.new:
            return x
        pixels = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(pixels, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class BiRealBlock(nn.Module):
    """One binary convolution with PReLU and BN, in a shortcut that projects where it shrinks."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = BinaryConv(inputs, features, stride)
        self.prelu1, self.norm1 = PReLU(), nn.BatchNorm2d(features)
        self.shortcut = None
        if stride > 1:
            self.shortcut = nn.Conv2d(inputs, features, 1, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(features)

    def forward(self, x: Tensor, alpha: Tensor, terms: Tensor) -> Tensor:
        y = self.norm1(self.prelu1(self.conv1(x, alpha, terms)))
        if self.shortcut is None:
            return y + x
        pooled = functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return y + self.shortcut_norm(self.shortcut(pooled))


class ResNet(nn.Module):
    """What both networks share; parameters bear fda_jax's names."""

    def __init__(
        self, stem: nn.Conv2d, block: type[nn.Module], widths: Sequence[int], blocks: int
    ) -> None:
        super().__init__()
        self.stem, self.stem_norm = stem, nn.BatchNorm2d(widths[0])
        self.blocks = list(self._make_blocks(block, widths, blocks))
        self.classifier = nn.Linear(widths[-1], CLASSES)

    def _make_blocks(
        self, block: type[nn.Module], widths: Sequence[int], blocks: int
    ) -> Iterator[nn.Module]:
        inputs = widths[0]
        for stage, features in enumerate(widths, start=1):
            for i in range(1, blocks + 1):
                made = block(inputs, features, 2 if stage > 1 and i == 1 else 1)
                self.add_module(f"stage{stage}_block{i}", made)
                inputs = features
                yield made


class ResNet20(ResNet):
    """ResNet-20 of CIFAR-10, plain form."""

    def __init__(self, blocks: int = 3, widths: Sequence[int] = (16, 32, 64)) -> None:
        stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        super().__init__(stem, PlainBlock, widths, blocks)

    def forward(self, x: Tensor, alpha: Tensor, terms: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x))
        for block in self.blocks:
            x = block(x, alpha, terms)
        return self.classifier(x.relu().mean((2, 3)))


class ResNet18(ResNet):
    """ResNet-18 of ImageNet, Bi-Real form; `blocks` counts convolutions of a stage."""

    def __init__(self, blocks: int = 4, widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        stem = nn.Conv2d(3, widths[0], 7, 2, padding=3, bias=False)
        super().__init__(stem, BiRealBlock, widths, blocks)

    def forward(self, x: Tensor, alpha: Tensor, terms: Tensor) -> Tensor:
        x = functional.max_pool2d(self.stem_norm(self.stem(x)), 3, 2, padding=1)
        for block in self.blocks:
            x = block(x, alpha, terms)
        return self.classifier(x.mean((2, 3)))


NETWORKS = {"resnet20": ResNet20, "resnet18": ResNet18}


def he_normal(features: int, inputs: int, side: int) -> Tensor:
    return torch.randn(features, inputs, side, side) * math.sqrt(2.0 / (inputs * side * side))


class Objective(nn.Module):
    """Loss and right answers on a data set, which CUDA graphs read in place as it is a buffer."""

    images: Tensor
    labels: Tensor

    def __init__(self, network: nn.Module, task: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self._side, self._dtype = network, task["side_px"], task["dtype"]
        rng = np.random.default_rng(0)
        shape = (task["examples"], self._side, self._side, 3)
        images = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        # The margin is laid round the whole data set once.
        self.register_buffer("images", functional.pad(images, (0, 0, *(CROP_PX,) * 4)))
        labels = torch.from_numpy(rng.integers(0, CLASSES, task["examples"]))
        self.register_buffer("labels", labels)

    def forward(self, chosen: Tensor, shift: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Cut the chosen images out; shift is (row, column, mirrored) of each."""
        pixels = torch.arange(self._side, device=chosen.device)
        rows = shift[0, :, None] + pixels
        mirrored = shift[2, :, None] > 0
        columns = shift[1, :, None] + torch.where(mirrored, self._side - 1 - pixels, pixels)
        images = self.images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        return self.loss_of(images, self.labels[chosen], step)

    def loss_of(self, images: Tensor, labels: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        progress = step / TOTAL_STEPS
        alpha = 0.5 * NOISE_SCALE * (1.0 + torch.cos(math.pi * progress))
        stages = TERMS_END - TERMS_START + 1
        terms = TERMS_START + torch.clamp(torch.floor(progress * stages), 0, stages - 1)
        x = (images.float() / 255.0 - PIXEL_MEAN) / PIXEL_STD
        with self._precision(images.device.type):
            logits = self.network(x.permute(0, 3, 1, 2), alpha, terms).float()
        loss = functional.cross_entropy(logits, labels)
        return loss, (logits.argmax(1) == labels).sum()

    def _precision(self, device: str) -> contextlib.AbstractContextManager[Any]:
        if self._dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)


class Trainer:
    """SGD with momentum 0.9, rate 0.1 (cosine) and weight decay 1e-4."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self._task = task
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        sizes = {"blocks": task["blocks"]} if task["network"] == "resnet20" else {}
        network = NETWORKS[task["network"]](**sizes)
        if task["variables"]:
            load(network, task["variables"])
        network.to(memory_format=torch.channels_last)
        self._objective = Objective(network, task).to(self._device)
        self._loss: Callable[..., tuple[Tensor, Tensor]] = self._objective
        if task["mode"] != "eager":
            self._loss = torch.compile(self._objective, mode=task["mode"], dynamic=False)
        names = ("latent_kernel", "stem.weight", "classifier.weight", "classifier.bias")
        names += ("shortcut.weight",)
        groups: dict[float, list[Tensor]] = {1e-4: [], 0.0: []}
        for name, parameter in network.named_parameters():
            groups[1e-4 if name.endswith(names) else 0.0].append(parameter)
        self._optimizer = torch.optim.SGD(
            [{"params": group, "weight_decay": decay} for decay, group in groups.items()],
            lr=0.1,
            momentum=0.9,
            fused=True,
        )
        self._steps = 0
        self._step = torch.zeros((), device=self._device)
        self._totals = torch.zeros(2, device=self._device)

    @torch.no_grad()
    def check_loss(self) -> float:
        """Mean loss of `steps.random_batch` in training, nothing augmented, first weights."""
        rng, task = np.random.default_rng(0), self._task
        shape = (task["batch"], task["side_px"], task["side_px"], 3)
        images = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)).to(self._device)
        labels = torch.from_numpy(rng.integers(0, CLASSES, task["batch"])).to(self._device)
        return self._objective.loss_of(images, labels, self._step)[0].item()

    def call(self) -> float:
        """Take the steps of one call and wait for them; the loss of the last."""
        task, device = self._task, self._device
        size = (task["steps_per_call"], task["batch"])
        chosen = torch.randint(0, task["examples"], size, device=device)
        shifts = torch.randint(0, 2 * CROP_PX + 1, (size[0], 3, size[1]), device=device)
        shifts[:, 2] = torch.randint(0, 2, size, device=device)
        loss = torch.zeros((), device=device)
        for i in range(task["steps_per_call"]):
            loss = self._take_step(chosen[i], shifts[i])
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError("the loss is not finite")
        return value

    def _take_step(self, chosen: Tensor, shift: Tensor) -> Tensor:
        cosine = math.cos(math.pi * min(self._steps / TOTAL_STEPS, 1.0))
        for group in self._optimizer.param_groups:
            group["lr"] = 0.05 * (1.0 + cosine)
        if self._task["mode"] == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        loss, right = self._loss(chosen, shift, self._step)
        self._totals += torch.stack((loss.detach(), right.float()))
        kept = loss.detach().clone()
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        self._step += 1
        return kept


def load(network: nn.Module, path: str) -> None:
    """Take over fda_jax's variables from a file."""
    with np.load(path) as variables:
        tensors = {name: torch.from_numpy(value) for name, value in variables.items()}
    network.load_state_dict({**network.state_dict(), **translated(tensors)})


def translated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fda_jax's arrays by path, as PyTorch names and lays out those of the layers it brings."""
    names = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
    state = {}
    for name, tensor in tensors.items():
        *module, leaf = name.split("/")[1:]
        if tensor.ndim == 4:
            tensor = tensor.permute(3, 2, 0, 1)
        elif leaf == "kernel":
            tensor = tensor.T
        state[".".join([*module, names.get(leaf, leaf)])] = tensor
    return state


def main(text: str) -> None:
    task = json.loads(text)
    signal.alarm(int(task["ready_seconds"]))
    trainer = Trainer(task)
    check_loss = trainer.check_loss()
    begin = time.perf_counter()
    trainer.call()
    compile_seconds = time.perf_counter() - begin
    trainer.call()
    signal.alarm(0)

    def turn() -> dict[str, float]:
        begin = time.perf_counter()
        losses = [trainer.call()]
        while time.perf_counter() - begin < task["turn_seconds"]:
            losses.append(trainer.call())
        seconds = time.perf_counter() - begin
        taken = len(losses) * task["steps_per_call"]
        return {
            "seconds": seconds,
            "steps": taken,
            "images_per_second": taken * task["batch"] / seconds,
            "loss": losses[-1],
        }

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    sides.serve(
        turn,
        {
            "program": f"torch {torch.__version__}, torch.compile mode {task['mode']} on {device}",
            "compile_seconds": compile_seconds,
            "check_loss": check_loss,
        },
    )


if __name__ == "__main__":
    main(sys.argv[1])
