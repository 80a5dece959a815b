"""Inference on the CPU: counting bits against floating point, ours, ONNX Runtime's and PyTorch's.

Each cell is a network and a batch. Its sides are processes that take turns with the same images:
the shipped file by counting bits and in floating point; ONNX Runtime with the same binary network,
and with the real one of the same shape, which has neither signs nor scales; and for two networks
PyTorch (eager, and compiled with its weights frozen) with both. PyTorch may live in an environment
of its own:

    python benchmarks/inference_cpu.py --out=results --torch-python=torch-env/bin/python
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import answering
import jax
import jax.numpy as jnp
import numpy as np
import record
import sides
from flax.traverse_util import flatten_dict
from matplotlib.patches import Patch
from matplotlib.ticker import StrMethodFormatter

from fda_jax import deploy, models, ops
from fda_jax.experiment import figures
from fda_jax.ops import native

BITS, REAL, REAL_NETWORK = "bits", "real", "real network"
# PyTorch's sides: a mode, and whether the network is the binary one.
TORCH = {
    "eager": ("eager", "binary"),
    "compile": ("compile", "binary"),
    "real network, eager": ("eager", "real"),
    "real network, compile": ("compile", "real"),
}
# Whether the network is the binary one.
ONNX = {"ONNX Runtime": "binary", "ONNX Runtime, real network": "real"}
# Of which PyTorch has a peer, and others; pixels, and images of a batch.
NETWORKS = {"resnet20": 32, "vgg_small": 32, "resnet18": 224, "alexnet": 224}
PEERS = ("resnet20", "vgg_small")
BATCHES = {"resnet20": (1, 32), "vgg_small": (1, 32), "resnet18": (1, 16), "alexnet": (1, 16)}
ROUNDS, TURN_SECONDS = 11, 0.5
MEAN, STD = 0.5, 0.25
# Convolutions 3 x 3 of these networks at stride 1: pixels, channels.
LAYERS = ((32, 16), (16, 32), (8, 64), (32, 128), (16, 256), (8, 512), (56, 64), (14, 256))
LAYER_BATCH, LAYER_SECONDS = 8, 0.1
FIGURE = "inference_cpu.png"

Cell = dict[str, Any]


def main() -> None:
    args = arguments()
    if native.kernels() is None:
        sys.exit("bits are counted by a kernel that a C++ compiler makes: install g++ or clang++")
    result = record.Record(
        "inference_cpu", "Is a shipped binary network faster than a real one on a CPU?"
    )
    cells = []
    for network in args.networks:
        for batch in args.batches or BATCHES[network]:
            cells.append(measure(args, network, batch))
            print_cell(cells[-1])
    layers = measure_layers(args)
    fill(result, cells, layers)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.out / FIGURE, cells, layers)
    print(result.answer)
    result.write(args)


def arguments() -> argparse.Namespace:
    parser = record.parser(__doc__)
    sides.add_torch_python(parser)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each side")
    parser.add_argument("--batches", type=int, nargs="+", help="images a call; by network")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    args = parser.parse_args()
    args.sizes, args.layers, args.seconds, args.torch = {}, LAYERS, TURN_SECONDS, dict(TORCH)
    if args.tiny:
        args.networks, args.batches, args.rounds, args.seconds = ["vgg_small"], [2], 2, 0.01
        args.sizes, args.layers = {"widths": (8, 16, 32)}, ((4, 16),)
        # Where there is no PyTorch, our own sides are tried.
        modes = ("eager",) if sides.has_torch(args.torch_python) else ()
        args.torch = {name: side for name, side in TORCH.items() if side[0] in modes}
    else:
        sides.check_torch(args.torch_python)
    return args


def measure(args: argparse.Namespace, network: str, batch: int) -> Cell:
    """Turns of all sides of one cell, and how far their logits lie apart."""
    with started(args, network, batch) as workers:
        turns = {name: worker.turn for name, worker in workers.items()}
        answers = sides.alternate(turns, args.rounds)
        facts = {name: worker.facts for name, worker in workers.items()}
    bits = np.array(facts[BITS]["logits"])
    floats = {name: np.array(facts[name]["logits"]) for name in facts if REAL_NETWORK not in name}
    others = [name for name in answers if name != BITS]
    fastest = min(others, key=lambda name: sides.median(answers[name]))
    return {
        "network": network,
        "batch": batch,
        "turns": answers,
        "fastest": fastest,
        "speed": sides.ratio(answers[fastest], answers[BITS]),
        "difference": float(
            max(np.abs(each - bits).max() for each in floats.values()) / np.abs(bits).max()
        ),
        "programs": {name: fact["program"] for name, fact in facts.items()},
    }


@contextmanager
def started(args: argparse.Namespace, network: str, batch: int) -> Iterator[dict[str, sides.Side]]:
    """The workers of a cell, which end with the context."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save(folder, network, batch, args.sizes)
        here, file = Path(__file__).parent / "workers", folder / "variables.npz"
        common = (str(folder / "images.npy"), str(args.seconds))

        def worker(*command: str) -> sides.Side:
            side = sides.Side(command, {"TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "cache")})
            stack.callback(side.close)
            return side

        workers = {
            arithmetic: worker(
                str(here / "jax_answer.py"), str(folder / "net.npz"), arithmetic, *common
            )
            for arithmetic in (BITS, REAL)
        }
        runtime = str(here / "onnx_answer.py")
        for name, kind in ONNX.items():
            workers[name] = worker(runtime, str(folder / f"{kind}.onnx"), *common)
        if network in PEERS:
            program = (args.torch_python, str(here / "torch_answer.py"), network, str(file))
            workers |= {name: worker(*program, *side, *common) for name, side in args.torch.items()}
        yield workers


def save(folder: Path, network: str, batch: int, sizes: dict[str, Any]) -> None:
    """A network that is not that of the start, as a file and as variables, and images."""
    side, rng = NETWORKS[network], np.random.default_rng(0)
    shape, scaling = (side, side, 3), {"mean": (MEAN,) * 3, "std": (STD,) * 3}

    def make(method: str) -> tuple[Any, Any]:
        model = models.build(network, num_classes=10, method=method).clone(**sizes)
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))
        return model, jax.tree.map(
            lambda leaf: leaf + rng.uniform(-0.1, 0.1, leaf.shape).astype(leaf.dtype), variables
        )

    model, variables = make("ste")
    deploy.freeze(model, variables, shape, **scaling).save(folder / "net.npz")
    for kind, made in (("binary", (model, variables)), ("real", make("full_precision"))):
        written = deploy.to_onnx(*made, shape, **scaling).SerializeToString()
        (folder / f"{kind}.onnx").write_bytes(written)
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(variables, sep="/").items()}
    np.savez(folder / "variables.npz", **flat)
    images = rng.integers(0, 256, (batch, *shape)).astype(np.uint8)
    np.save(folder / "images.npy", images)


def measure_layers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Single convolutions in this process: bits, XLA, and our kernel for real numbers."""
    return [measure_layer(side, channels, args) for side, channels in args.layers]


def measure_layer(side: int, channels: int, args: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((LAYER_BATCH, side, side, channels)), jnp.float32)
    is_positive = rng.random((3, 3, channels, channels)) < 0.5
    one, same = np.ones(channels, np.float32), ((1, 1), (1, 1))
    w = jnp.where(is_positive, 1.0, -1.0)
    bits = jax.device_put(ops.sign_kernel(is_positive, -one, one))
    convolve = functools.partial(ops.convolve, stride=1, padding=same)
    # All begin with real activations.
    programs: dict[str, Callable[[], jax.Array]] = {
        BITS: functools.partial(jax.jit(lambda x, w: ops.convolve_signs(x, w, 1, same)), x, bits),
        "XLA": functools.partial(jax.jit(lambda x, w: convolve(ops.sign(x), w)), x, w),
        # As training calls it.
        "our float32 kernel": functools.partial(
            jax.jit(lambda x, w: jax.vjp(lambda w: convolve(ops.sign(x), w), w)[0]),
            x,
            w,
        ),
    }
    sums = [np.asarray(program()) for program in programs.values()]
    if any(np.any(each != sums[0]) for each in sums):
        raise AssertionError(f"the sums of a layer of {channels} channels differ")
    seconds = 0.01 if args.tiny else LAYER_SECONDS

    def turn(program: Callable[[], jax.Array]) -> dict[str, float]:
        begin, calls = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            program().block_until_ready()
            calls += 1
        return {"seconds": (time.perf_counter() - begin) / calls}

    turns = {name: functools.partial(turn, program) for name, program in programs.items()}
    products = LAYER_BATCH * side**2 * 9 * channels**2
    return {
        "layer": f"{channels} channels, {side} x {side}",
        "products": products,
        "turns": sides.alternate(turns, args.rounds),
    }


def print_cell(cell: Cell) -> None:
    print(f"{cell['network']}, batch {cell['batch']}: {cell['speed']:.2f}x of {cell['fastest']}")
    for side, turns in cell["turns"].items():
        print(f"  {side:22} {1000 * sides.median(turns):9.3f} ms")


def fill(result: record.Record, cells: list[Cell], layers: list[dict[str, Any]]) -> None:
    """Tables, goals and answer from the cells."""
    result.tables = [network_table(cells), layer_table(layers)]
    for cell in cells:
        name = f"{cell['network']}, batch {cell['batch']}"
        result.goals.append(
            record.Goal(
                f"{name}: counting bits at least 1.0x the speed of the fastest other side",
                f"{cell['speed']:.2f}x of {cell['fastest']}",
                cell["speed"] >= 1.0,
            )
        )
    largest = max(cell["difference"] for cell in cells)
    result.goals.append(
        record.Goal(
            f"all sides with the binary network give the same first {answering.LOGITS} logits "
            "within 0.1%",
            f"largest difference {largest:.1e} of the largest logit",
            largest <= 1e-3,
        )
    )
    speeds = "; ".join(f"{c['network']}, batch {c['batch']}: {c['speed']:.2f}x" for c in cells)
    result.answer = (
        "Counting bits, beside the fastest of floating point, ONNX Runtime, PyTorch and the real "
        f"network of the same shape: {speeds}."
    )
    result.details = {"cells": cells, "layers": layers}
    result.figures = [FIGURE]


def network_table(cells: list[Cell]) -> record.Table:
    names = list(dict.fromkeys(name for cell in cells for name in cell["turns"] if name != BITS))
    rows = []
    for cell in cells:
        turns = cell["turns"]
        rows.append(
            [
                f"{cell['network']}, batch {cell['batch']}",
                *(
                    round(sides.ratio(turns[name], turns[BITS]), 2) if name in turns else None
                    for name in names
                ),
                round(1000 * sides.median(turns[BITS]), 3),
                round(cell["batch"] / sides.median(turns[BITS])),
            ]
        )
    return record.Table(
        "Networks: time of the other sides, counting bits = 1",
        [
            "network",
            *(f"{NAMES.get(name, name)}" for name in names),
            "bits (ms a call)",
            "bits (images/s)",
        ],
        rows,
        "Above 1: counting bits is faster. Ratios of medians of turns that alternate, on all "
        "cores; times are of this machine on this day. The real network has the same layers "
        "without signs.",
    )


def draw(path: Path, cells: list[Cell], layers: list[dict[str, Any]]) -> None:
    """The ratios of both tables as bars."""
    figure = figures.new_figure(11, 5, dots_per_inch=100)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    panels = (
        (left, "whole networks", [(f"{c['network']}\nbatch {c['batch']}", c) for c in cells]),
        (
            right,
            f"binary convolutions 3 x 3, batch {LAYER_BATCH}",
            [(o["layer"], o) for o in layers],
        ),
    )
    for axes, title, groups in panels:
        names = list(dict.fromkeys(name for _, group in groups for name in group["turns"]))
        names.remove(BITS)
        for place, (_, group) in enumerate(groups):
            present = [name for name in names if name in group["turns"]]
            for i, name in enumerate(present):
                colour = figures.COLOURS[names.index(name)]
                ratio = sides.ratio(group["turns"][name], group["turns"][BITS])
                y = place + (i - (len(present) - 1) / 2) * 0.8 / len(names)
                axes.barh(y, ratio, height=0.8 / len(names), color=colour)
        axes.axvline(1.0, color="black", linewidth=1.0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_yticks(range(len(groups)), [name for name, _ in groups])
        axes.invert_yaxis()
        figures.tidy(axes, title=title, x="time (counting bits = 1)", y="")
        handles = [Patch(color=c) for c in figures.COLOURS[: len(names)]]
        labels = [NAMES.get(name, name) for name in names]
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)
    figures.save(figure, path)


NAMES = {
    REAL: "the same file in floating point",
    "eager": "PyTorch, eager",
    "compile": "PyTorch, compile",
    "real network, eager": "PyTorch, real network, eager",
    "real network, compile": "PyTorch, real network, compile",
}


def layer_table(layers: list[dict[str, Any]]) -> record.Table:
    names = [name for name in layers[0]["turns"] if name != BITS]
    rows = []
    for layer in layers:
        medians = {name: sides.median(turns) for name, turns in layer["turns"].items()}
        rows.append(
            [
                layer["layer"],
                *(round(medians[name] / medians[BITS], 2) for name in names),
                round(layer["products"] / medians[BITS] / 1e9),
            ]
        )
    return record.Table(
        f"Binary convolutions 3 x 3 alone, batch {LAYER_BATCH}: time, counting bits = 1",
        ["layer", *names, "bits (billion products/s)"],
        rows,
        "From real activations, whose signs each side takes first. All sums are equal, bit for "
        "bit; a layer for which they were not would end the benchmark.",
    )


if __name__ == "__main__":
    main()
