"""What training on several devices sends between them, and what that would cost on real links.

The bytes are counted: ResNet-20 and VGG-Small train some steps on 1, 2, 4 and 8 simulated devices,
through the code that a run uses, and every all-reduce of the program that XLA made of the step is
read: how many there are, how many bytes they reduce, and what for (gradient, batch normalisation,
metrics). The times on paper are a model, nothing of it is measured: an all-reduce of B bytes over p
GPUs in a ring takes latency + 2 (p - 1) / p B / bandwidth, nothing overlaps with computation, every
GPU keeps its batch (weak scaling), and the step on one GPU takes --step-ms.

The links: 450 GB/s is one direction of an H100's or H200's NVLink 4 (900 GB/s is both directions),
50 GB/s is InfiniBand NDR, 400 Gb/s a GPU; a ring over several nodes is as fast as its slowest link.
The latencies of a small all-reduce, by which the batch statistics are bound, are assumptions.

    python benchmarks/scaling.py --out=runs/scaling
    python benchmarks/scaling.py --out=runs/scaling --step-ms resnet20=2.7 vgg_small=4
"""

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
import sides

# Of first losses, near 2.7. Other last bits give an activation near 0 the other sign: on one
# device, images times 1 + 1e-7 noise give first losses of ResNet-20 from 2.711 to 2.781. A step
# later all weights differ, so that later losses, which the record has too, say less.
TOLERANCE = 0.1
WORKER = Path(__file__).parent / "workers" / "collectives.py"
PARTS = {
    "norm_forward": "batch statistics, forward",
    "norm_backward": "batch statistics, backward",
    "gradient": "gradient and loss",
    "metrics": "metrics",
}
# The network at which every line runs, and attributes with which little is compiled.
TINY = {"resnet20": {"stage_sizes": [1], "widths": [4]}}
BATCH, STEPS, SIDE_PX, LIMIT = 16, 2, 32, 0.8


@dataclasses.dataclass(frozen=True)
class Link:
    """What a ring of GPUs is bound by.

    Attributes:
      gpus: in the ring.
      where: in words.
      gigabytes: a second, in one direction.
      microseconds: of the smallest all-reduce.
    """

    gpus: int
    where: str
    gigabytes: float
    microseconds: float

    def seconds(self, sizes: Sequence[float]) -> float:
        """Time of all-reduces that follow one another."""
        share = 2 * (self.gpus - 1) / self.gpus
        return sum(
            self.microseconds * 1e-6 + share * size / (self.gigabytes * 1e9) for size in sizes
        )


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument(
        "--step-ms",
        nargs="+",
        default=["resnet20=2.7", "vgg_small=5"],
        metavar="NETWORK=MS",
        help="step of 128 images on one GPU (default, an assumption: %(default)s)",
    )
    parser.add_argument("--node-gbps", type=float, default=450, help="GB/s inside a node")
    parser.add_argument("--node-us", type=float, default=20, help="latency inside a node")
    parser.add_argument("--network-gbps", type=float, default=50, help="GB/s between nodes")
    parser.add_argument("--network-us", type=float, default=60, help="latency between nodes")
    args = parser.parse_args()
    if args.tiny:
        args.devices = [1, 2]
    milliseconds = {name: float(ms) for name, ms in (item.split("=") for item in args.step_ms)}
    if args.tiny:
        milliseconds = {name: milliseconds[name] for name in TINY}
    links = [
        Link(8, "8 GPUs of a node, NVLink", args.node_gbps, args.node_us),
        Link(64, "64 GPUs of 8 nodes, InfiniBand", args.network_gbps, args.network_us),
    ]
    counted = {name: count(name, args) for name in milliseconds}
    print(make_record(counted, milliseconds, links, args).write(args))


def count(network: str, args: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """The facts of the worker at each number of devices."""
    facts = {}
    # FDA's noise modules take long to compile.
    method, side = ("ste", 8) if args.tiny else ("fda", SIDE_PX)
    sizes = [f"{k}={json.dumps(v)}" for k, v in TINY[network].items()] if args.tiny else []
    for devices in args.devices:
        command = [str(WORKER), network, method, *map(str, (devices, BATCH, STEPS, side)), *sizes]
        # Simulated devices are the CPU's, whatever else there is.
        with contextlib.closing(sides.Side(command, {"JAX_PLATFORMS": "cpu"})) as worker:
            facts[devices] = worker.facts
        sent = facts[devices]["collectives"]
        print(
            f"{network} on {devices}: {len(sent)} all-reduces, "
            f"{sum(sum(parts.values()) for parts in sent) / 1e6:.3f} MB, "
            f"losses {facts[devices]['losses']}",
            flush=True,
        )
    return facts


def make_record(
    counted: Mapping[str, Mapping[int, dict[str, Any]]],
    milliseconds: Mapping[str, float],
    links: Sequence[Link],
    args: argparse.Namespace,
) -> record.Record:
    paper = {
        name: [on_paper(link, facts[max(facts)], milliseconds[name]) for link in links]
        for name, facts in counted.items()
    }
    return record.Record(
        name="scaling",
        question="What do synchronised batch normalisation and the gradient send between devices, "
        "and how would training scale to 8 and 64 GPUs?",
        answer=" ".join(answer(name, counted[name], paper[name], links) for name in counted),
        tables=[
            bytes_table(counted),
            paper_table(paper, milliseconds, links),
        ],
        goals=[goal for name in counted for goal in goals(name, counted[name], paper[name], links)],
        details={
            "counted": {name: dict(facts) for name, facts in counted.items()},
            "paper": paper,
            "links": [dataclasses.asdict(link) for link in links],
            "step_ms": dict(milliseconds),
            "batch": BATCH,
            "cores": os.cpu_count(),
        },
    )


def split(facts: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Number of all-reduces and bytes of each part."""
    sent = facts["collectives"]
    return {
        part: (
            sum(part in parts for parts in sent),
            sum(parts.get(part, 0) for parts in sent),
        )
        for part in PARTS
    }


def bytes_table(counted: Mapping[str, Mapping[int, dict[str, Any]]]) -> record.Table:
    rows = []
    for name, facts in counted.items():
        for devices, of in facts.items():
            parts = split(of)
            row = [name, devices, len(of["collectives"])]
            row += [f"{number}: {size / 1e3:.3f}" for number, size in parts.values()]
            rows.append([*row, round(4 * of["parameters"] / 1e3, 3)])
    return record.Table(
        "All-reduces of one step",
        [
            "network",
            "devices",
            "all-reduces",
            *(f"{label}, number: kB" for label in PARTS.values()),
            "parameters, kB",
        ],
        rows,
        "Read from the compiled program; kB is 1000 bytes. XLA may put arrays of two kinds into "
        "one all-reduce, which then counts in both columns. On one device nothing is sent.",
    )


def on_paper(link: Link, facts: Mapping[str, Any], step_ms: float) -> dict[str, float]:
    """The model's times in ms, and its efficiencies."""
    sent = facts["collectives"]
    norm = ("norm_forward", "norm_backward")
    everything = 1e3 * link.seconds([sum(parts.values()) for parts in sent])
    rest = [
        sum(size for part, size in parts.items() if part not in norm)
        for parts in sent
        if set(parts) - set(norm)
    ]
    without = 1e3 * link.seconds(rest)
    bandwidth = everything - len(sent) * link.microseconds * 1e-3
    return {
        "gpus": link.gpus,
        "communication_ms": everything,
        "bandwidth_ms": bandwidth,
        "without_norm_ms": without,
        "efficiency": step_ms / (step_ms + everything),
        "efficiency_without_norm": step_ms / (step_ms + without),
        "strong_speedup": step_ms / (step_ms / link.gpus + everything),
    }


def paper_table(
    paper: Mapping[str, Sequence[Mapping[str, float]]],
    milliseconds: Mapping[str, float],
    links: Sequence[Link],
) -> record.Table:
    rows = []
    for name, results in paper.items():
        for link, of in zip(links, results, strict=True):
            rows.append(
                [
                    name,
                    link.where,
                    milliseconds[name],
                    round(of["communication_ms"], 2),
                    round(of["bandwidth_ms"], 3),
                    f"{of['efficiency']:.0%}",
                    f"{of['efficiency_without_norm']:.0%}",
                    round(of["strong_speedup"], 1),
                ]
            )
    return record.Table(
        "Scaling on paper",
        [
            "network",
            "link",
            "step on one GPU, ms (assumed)",
            "all-reduces, ms",
            "of it bandwidth, ms",
            "efficiency",
            "efficiency, statistics not synchronised",
            "speed-up at a fixed global batch",
        ],
        rows,
        "A model, not a measurement; assumptions: "
        + "; ".join(
            f"{link.where}: {link.gigabytes:g} GB/s in one direction, {link.microseconds:g} us a "
            "collective"
            for link in links
        )
        + ". Efficiency is of weak scaling with no overlap; the last column divides the step by "
        "the GPUs, which flatters it.",
    )


def answer(
    name: str,
    facts: Mapping[int, Mapping[str, Any]],
    paper: Sequence[Mapping[str, float]],
    links: Sequence[Link],
) -> str:
    most = max(facts)
    sent = facts[most]["collectives"]
    parts = split(facts[most])
    norm = [parts["norm_forward"], parts["norm_backward"]]
    gradients, size = parts["gradient"]
    efficiencies = ", ".join(
        f"{of['efficiency']:.0%} on {link.gpus} GPUs ({of['efficiency_without_norm']:.0%} without "
        "synchronised statistics)"
        for link, of in zip(links, paper, strict=True)
    )
    return (
        f"{name} on {most} devices makes {len(sent)} all-reduces a step: the gradient of "
        f"{size / 1e6:.2f} MB goes in {gradients}, the batch statistics take "
        f"{sum(number for number, _ in norm)} for {sum(size for _, size in norm) / 1e3:.1f} kB: "
        "one forward and one backward for each normalisation, mean and mean square together "
        "already; each needs the one before it, so they cannot be merged further, only left out. "
        f"On paper the efficiency is {efficiencies}."
    )


def goals(
    name: str,
    facts: Mapping[int, Mapping[str, Any]],
    paper: Sequence[Mapping[str, float]],
    links: Sequence[Link],
) -> list[record.Goal]:
    losses = [of["losses"][0] for of in facts.values()]
    spread = float(np.ptp(losses))  # NaN where one is
    gradients = max(split(of)["gradient"][0] for of in facts.values())
    made = [
        record.Goal(
            f"{name}: the first losses agree within {TOLERANCE} on any number of devices",
            f"largest difference {spread:.1e}",
            spread < TOLERANCE,
        ),
        record.Goal(
            f"{name}: the gradient goes in at most 2 all-reduces", f"{gradients}", gradients <= 2
        ),
    ]
    for link, of in zip(links, paper, strict=True):
        made.append(
            record.Goal(
                f"{name}: efficiency on paper of at least {LIMIT:.0%} on {link.gpus} GPUs",
                f"{of['efficiency']:.0%}",
                of["efficiency"] >= LIMIT,
            )
        )
    return made


if __name__ == "__main__":
    main()
