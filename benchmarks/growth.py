"""How a training step's time, work and memory grow with each size of the problem.

ResNet-20 with FDA at one base setting, and along each axis one size is changed: the batch, the
width, the depth, the number of Fourier terms. Work is the FLOPs that XLA counts in the step before
it optimises, memory the temporary buffers. On an axis the steps of all its settings alternate. The
exponent p is that of size^p, fitted by least squares to the logarithms.

    python benchmarks/growth.py --out=runs/growth
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import record
import sides
import steps

from fda_jax.experiment.figures import COLOURS, new_figure, save
from fda_jax.training.state import TrainState

QUANTITIES = {"seconds": "time", "flops": "FLOPs", "temp_bytes": "temporary memory"}
# How far noise may carry an exponent that is compared with another one.
TOLERANCE = 0.1
FIGURE = "growth.png"
_first_states: dict[tuple[float, int], TrainState] = {}


@dataclasses.dataclass(frozen=True)
class Size:
    """Where on the axes a setting lies; the defaults are the base: ResNet-20."""

    batch: int = 32
    width: float = 1.0
    depth: int = 3
    terms: int = 10


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis: the field of `Size` that varies, what it is, its values and the expected exponent.

    The expected exponent is of the FLOPs, by counting.
    """

    field: str
    meaning: str
    values: Sequence[float]
    expected: float


AXES = (
    Axis("batch", "images in a batch", (16, 32, 64, 128, 256), 1.0),
    Axis("width", "width factor of the channels", (0.5, 1.0, 2.0, 4.0), 2.0),
    Axis("depth", "residual blocks in each stage", (1, 2, 3, 5), 1.0),
    Axis("terms", "Fourier terms N", (1, 10, 100), 0.0),
)
TINY_AXES = (
    Axis("width", "width factor of the channels", (0.5, 1.0), 2.0),
    Axis("terms", "Fourier terms N", (1, 10), 0.0),
)


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="steps of each setting")
    args = parser.parse_args()
    axes = TINY_AXES if args.tiny else AXES
    base = Size(batch=2, depth=1) if args.tiny else Size()
    widths, side, rounds = ((4,), 8, 1) if args.tiny else ((16, 32, 64), 32, args.rounds)
    knobs = {"noise": "none"} if args.tiny else {}  # the noise modules take long to compile
    make = functools.cache(functools.partial(stepper, widths=widths, side_px=side, **knobs))
    measured = {}
    for axis in axes:
        measured[axis.field] = measure(axis, base, make, rounds)
        print(f"{axis.meaning}: {describe(axis, measured[axis.field])}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(axes, measured, args.out / FIGURE)
    print(make_record(axes, base, measured).write(args))


def stepper(size: Size, *, widths: Sequence[int], side_px: int, **knobs: Any) -> steps.Stepper:
    """The compiled step of one setting, past its first call; `widths` are those at factor 1."""
    make = functools.partial(
        steps.make_setting,
        "resnet20",
        "fda",
        image_shape_hwc=(side_px, side_px, 3),
        augment=False,
        sizes={
            "widths": tuple(round(width * size.width) for width in widths),
            "stage_sizes": (size.depth,) * len(widths),
        },
        num_terms_start=size.terms,
        num_terms_end=size.terms,
        **knobs,
    )
    # Weights depend on these two alone, and take as long to compile as the step.
    shape = (size.width, size.depth)
    if shape not in _first_states:
        _first_states[shape] = make(batch_size=1).state
    made = steps.Stepper(make(batch_size=size.batch, state=_first_states[shape]))
    made()
    return made


def measure(axis: Axis, base: Size, make: Any, rounds: int) -> dict[str, Any]:
    """What came out at each value of an axis, and the fitted exponents."""
    steppers = {
        str(value): make(dataclasses.replace(base, **{axis.field: value})) for value in axis.values
    }
    answers = sides.alternate(steppers, rounds)
    points = [
        {
            "value": value,
            "seconds": sides.median(answers[str(value)]),
            "flops": steppers[str(value)].flops(),
            "temp_bytes": steppers[str(value)].compiled.memory_analysis().temp_size_in_bytes,
            "compile_seconds": steppers[str(value)].compile_seconds,
            "turns": answers[str(value)],
        }
        for value in axis.values
    ]
    return {
        "points": points,
        "exponents": {
            key: exponent(axis.values, [point[key] for point in points]) for key in QUANTITIES
        },
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the straight line through the logarithms."""
    slope = float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
    return round(slope, 6) + 0.0  # which is never -0


def describe(axis: Axis, result: Mapping[str, Any]) -> str:
    exponents = result["exponents"]
    return ", ".join(f"{label} ~ size^{exponents[key]:.2f}" for key, label in QUANTITIES.items())


def make_record(axes: Sequence[Axis], base: Size, measured: Mapping[str, Any]) -> record.Record:
    tables = [summary(axes, base, measured)]
    tables += [points_table(axis, measured[axis.field]["points"]) for axis in axes]
    of = {axis.field: measured[axis.field]["exponents"] for axis in axes}
    return record.Record(
        name="growth",
        question="How do time, work and memory of a training step grow with batch, width, depth "
        "and the number of Fourier terms?",
        answer="Time grows as "
        + ", ".join(f"{axis.field}^{of[axis.field]['seconds']:.2f}" for axis in axes)
        + "; FLOPs as "
        + ", ".join(f"{axis.field}^{of[axis.field]['flops']:.2f}" for axis in axes)
        + "; temporary memory as "
        + ", ".join(f"{axis.field}^{of[axis.field]['temp_bytes']:.2f}" for axis in axes)
        + ".",
        tables=tables,
        goals=[goal for axis in axes for goal in goals(axis, of[axis.field])],
        figures=[FIGURE],
        details={"base": dataclasses.asdict(base), "axes": dict(measured)},
    )


def summary(axes: Sequence[Axis], base: Size, measured: Mapping[str, Any]) -> record.Table:
    rows = []
    for axis in axes:
        exponents = measured[axis.field]["exponents"]
        reach = f"{axis.values[0]:g} to {axis.values[-1]:g}"
        fitted = [round(exponents[key], 2) for key in QUANTITIES]
        rows.append([axis.meaning, reach, axis.expected, *fitted])
    return record.Table(
        "Exponents of growth",
        ["axis", "range", "FLOPs, by counting", "time", "FLOPs", "temporary memory"],
        rows,
        f"p in size^p, fitted over the whole range; round a base of {base.depth} blocks a stage, "
        f"width factor {base.width:g}, batch {base.batch} and {base.terms} terms.",
    )


def points_table(axis: Axis, points: Sequence[Mapping[str, Any]]) -> record.Table:
    first = points[0]
    return record.Table(
        f"Along {axis.meaning}",
        [axis.meaning, "time, ratio", "GFLOP", "FLOPs, ratio", "temporary MiB", "compile, s"],
        [
            [
                point["value"],
                round(point["seconds"] / first["seconds"], 2),
                round(point["flops"] / 1e9, 2),
                round(point["flops"] / first["flops"], 2),
                round(point["temp_bytes"] / 2**20, 1),
                round(point["compile_seconds"], 1),
            ]
            for point in points
        ],
        "Ratios to the first row; steps of all rows alternated.",
    )


def goals(axis: Axis, exponents: Mapping[str, float]) -> list[record.Goal]:
    time, flops, temp = (exponents[key] for key in QUANTITIES)
    limit = max(axis.expected, 0.0) + TOLERANCE
    return [
        record.Goal(
            f"time grows with {axis.meaning} no faster than the work by counting: exponent at "
            f"most {limit:.1f}",
            f"{time:.2f} (FLOPs {flops:.2f})",
            time <= limit,
        ),
        record.Goal(
            f"temporary memory grows with {axis.meaning} at most linearly: exponent at most "
            f"{1 + TOLERANCE:.1f}",
            f"{temp:.2f}",
            temp <= 1 + TOLERANCE,
        ),
    ]


def draw(axes: Sequence[Axis], measured: Mapping[str, Any], path: Any) -> None:
    """A panel for each axis: ratios to its smallest value, both scales logarithmic."""
    figure = new_figure(3.2 * len(axes), 3.6, dots_per_inch=110)
    panels = figure.subplots(1, len(axes))
    for panel, axis in zip(panels, axes, strict=True):
        points = measured[axis.field]["points"]
        for (key, label), colour, marker in zip(
            QUANTITIES.items(), COLOURS, ("o", "s", "^"), strict=False
        ):
            ratios = [point[key] / points[0][key] for point in points]
            fitted = measured[axis.field]["exponents"][key]
            panel.plot(
                axis.values, ratios, marker=marker, color=colour, label=f"{label}: p = {fitted:.2f}"
            )
        panel.set(xscale="log", yscale="log", xlabel=axis.meaning)
        panel.set_xticks(axis.values, [f"{value:g}" for value in axis.values])
        panel.minorticks_off()
        # A flat axis would otherwise be magnified until noise looks like growth.
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, 0.5), max(high, 10.0))
        panel.legend(fontsize="small")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ratio to the smallest size")
    figure.suptitle("Growth of a training step: size^p")
    save(figure, path)


if __name__ == "__main__":
    main()
