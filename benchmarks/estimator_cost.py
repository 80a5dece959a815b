"""What the Fourier slope costs: N cosines by the paper's sum, two sines by its closed form.

Backward pass alone: the vjp of `ops.binarize`, beside clipped STE and a copy, which here is the
jitted sum x + cotangent: it reads and writes the same bytes. All of them write into an array that
exists, as a training step does; a fresh one would add the cost of its pages to every side. Whole
step: without noise modules, beside clipped STE. The closed form is one program for every N, which
is traced; the literal sum is unrolled, a program for each N. The noise modules are stated apart.
JAX's sides alternate in one process; PyTorch's, if there is an interpreter for it, has its own.

    python benchmarks/estimator_cost.py --out=runs/benchmarks
    python benchmarks/estimator_cost.py --out=runs/benchmarks --torch-python=torch/bin/python
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
import sides
import steps
from matplotlib.ticker import LogLocator, StrMethodFormatter

from fda_jax import ops
from fda_jax.experiment import figures
from fda_jax.layers import Method, Quantizer, make_method
from fda_jax.ops.trigonometry import sine

NAME = Path(__file__).stem
WORKER = Path(__file__).parent / "workers" / "torch_slope.py"
COPY_LIMIT, STEP_LIMIT = 2.0, 1.03
FOURIER = ops.Fourier()
CLOSED, TORCH_CLOSED = "closed form, JAX", "closed form, PyTorch"
LITERAL, TORCH_LITERAL = "literal sum, JAX", "literal sum, PyTorch"
LITERAL_FAST = "literal sum, JAX, polynomial cosine"
LINES = (CLOSED, LITERAL, TORCH_LITERAL, TORCH_CLOSED, LITERAL_FAST)

Answers = dict[str, list[dict[str, Any]]]
Turn = Callable[[], Mapping[str, Any]]
# Time relative to clipped STE by N.
Line = dict[int, float]


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured, and how often.

    Attributes:
      terms: every N.
      unrolled_terms: those of which the literal sum is put into a whole step.
      elements: of the arrays of the backward pass alone.
      calls: that a turn of it times together.
      noise: operands that have noise modules, a method each.
      setting: arguments of `steps.make_setting`.
      rounds: of the backward passes, of the literal ones, of the steps and of the literal ones.
    """

    terms: tuple[int, ...] = (1, 2, 5, 10, 19, 40)
    unrolled_terms: tuple[int, ...] = (1, 2, 5, 10, 19, 40)
    elements: int = 2**24
    noise: tuple[str, ...] = ("weights and activations", "weights", "activations")
    # A GPU's calls are so short that the wait for one would count.
    calls: int = 1 if jax.default_backend() == "cpu" else 50
    setting: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"network": "resnet20", "batch_size": 128}
    )
    rounds: tuple[int, int, int, int] = (40, 3, 22, 2)


TINY = Size(
    terms=(1, 3),
    unrolled_terms=(3,),
    elements=2**12,
    noise=("weights and activations",),
    setting={
        "network": "resnet8",
        "sizes": {"stage_sizes": (1,), "widths": (8,)},
        "image_shape_hwc": (8, 8, 3),
        "batch_size": 4,
    },
    rounds=(2, 2, 2, 2),
)


@dataclasses.dataclass(frozen=True)
class LiteralSum(ops.Estimator):
    """The slope of `ops.Fourier` as Eq. 10 writes it, a cosine for each of N terms.

    Attributes:
      num_terms: N.
      cosine: the library's, or `fast_cosine`.
    """

    num_terms: int
    cosine: Callable[[jax.Array], jax.Array] = jnp.cos

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """Factor of the backward pass at x."""
        total = sum(self.cosine((2 * i + 1) * FOURIER.omega * x) for i in range(self.num_terms))
        return jnp.where(jnp.abs(x) > FOURIER.window, 0.0, 4 / np.pi * FOURIER.omega * total)


def fast_cosine(angle: jax.Array) -> jax.Array:
    """cos(angle) by the polynomial that the closed form has an equal of."""
    return sine(angle + np.pi / 2)


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument(
        "--torch-python",
        type=os.path.expanduser,
        help="interpreter that has PyTorch; none leaves it out",
    )
    args = parser.parse_args()
    size = TINY if args.tiny else Size()
    made = record.Record(NAME, "What does the Fourier slope cost beside clipped STE, by N?")
    alone, whole = measure_backward(size, args.torch_python), measure_steps(size)
    made.details = {"backward": alone, "step": whole}
    lines = summarize_backward(made, size, alone), summarize_steps(made, size, whole)
    made.answer = " ".join(sentences(made, size, *lines))
    args.out.mkdir(parents=True, exist_ok=True)
    titles = "Backward pass alone", f"Training step of {size.setting['network']}"
    draw(list(zip(titles, lines, strict=True)), args.out / f"{NAME}.png")
    made.figures = [f"{NAME}.png"]
    path = made.write(args)
    for goal in made.goals:
        print(f"{goal.what}: {goal.measured} ({'met' if goal.met else 'missed'})")
    print(f"{made.answer}\n{path}")


def measure_backward(size: Size, torch_python: str | None) -> dict[str, Any]:
    """Turns of the backward pass: of the closed form with every N, and of the literal sums."""
    rng = np.random.default_rng(0)
    x, cotangent = (
        jnp.asarray(rng.standard_normal(size.elements, dtype=np.float32)) for _ in range(2)
    )
    most = max(size.terms)

    def timed(function: Callable[..., jax.Array], terms: int = 1) -> Turn:
        # The result of a call is the memory of the next one's.
        jitted = jax.jit(function, donate_argnums=3, keep_unused=True)
        progress, last = jnp.float32((terms - 0.5) / most), jnp.zeros_like(x)

        def turn() -> dict[str, float]:
            nonlocal last
            start = time.perf_counter()
            for _ in range(size.calls):
                last = jitted(x, cotangent, progress, last)
            last.block_until_ready()
            return {"seconds": (time.perf_counter() - start) / size.calls}

        turn()
        return turn

    ste = backward(ops.ClippedSTE())
    closed = backward(ops.Fourier(num_terms_start=1, num_terms_end=most))
    turns = {"copy": timed(lambda x, cotangent, progress, last: x + cotangent)}
    turns |= {"ste": timed(ste), "ste again": timed(ste)}
    turns |= {str(n): timed(closed, n) for n in size.terms}
    result: dict[str, Any] = {"closed": sides.alternate(turns, size.rounds[0]), "literal": {}}
    for n in size.terms:
        some = {
            "ste": turns["ste"],
            LITERAL: timed(backward(LiteralSum(n))),
            LITERAL_FAST: timed(backward(LiteralSum(n, fast_cosine))),
        }
        result["literal"][n] = with_torch(some, size, n, torch_python)
        print(f"backward pass, N = {n}: done", flush=True)
    return result


def backward(rule: ops.Rule) -> Callable[..., jax.Array]:
    """(x, cotangent, progress, unused) -> the cotangent of x."""

    def pulled_back(
        x: jax.Array, cotangent: jax.Array, progress: jax.Array, unused: jax.Array
    ) -> jax.Array:
        _, pull_back = jax.vjp(lambda x: ops.binarize(x, rule, progress), x)
        return pull_back(cotangent)[0]

    return pulled_back


def with_torch(turns: dict[str, Turn], size: Size, terms: int, python: str | None) -> Answers:
    """Let the turns alternate with PyTorch's for the same N, if there is an interpreter for it."""
    if python is None:
        return sides.alternate(turns, size.rounds[1])
    numbers = (size.elements, terms, FOURIER.omega, FOURIER.window)
    side = sides.Side([python, str(WORKER), *map(str, numbers)])
    try:
        answers = sides.alternate({**turns, "torch": side.turn}, size.rounds[1])
    finally:
        side.close()
    for name, key in ((TORCH_LITERAL, "literal"), (TORCH_CLOSED, "closed")):
        answers[name] = [{"seconds": answer[key]} for answer in answers["torch"]]
    return answers


def measure_steps(size: Size) -> dict[str, Any]:
    """Turns of whole steps: clipped STE twice, every N, and the noise modules."""
    most = max(size.terms)
    # The one initialization that is compiled; others are parts of it.
    noisy = steps.make_setting(method="fda", **size.setting).state

    def stepper(method: Method, noise: str = "") -> steps.Stepper:
        dropped = [group for group in ("weight", "activation") if group not in noise]
        state = noisy.replace(params=without(noisy.params, dropped))
        return steps.Stepper(steps.make_setting(method=method, state=state, **size.setting))

    ste = stepper(make_method("ste"))
    closed = stepper(sine_module(ops.Fourier(num_terms_start=1, num_terms_end=most)))
    turns: dict[str, Turn] = {"ste": ste, "ste again": ste.at(0)}
    # An N lasts for TOTAL_STEPS / most steps, more than there are rounds.
    turns |= {str(n): closed.at((n - 1) * steps.TOTAL_STEPS // most + 1) for n in size.terms}
    turns |= {f"noise on {name}": stepper(noisy_method(name), name) for name in size.noise}
    print("steps: compiled", flush=True)
    result: dict[str, Any] = {"closed": rounds_of(turns, size.rounds[2]), "literal": {}}
    for n in size.unrolled_terms:
        pair = {"ste": ste, LITERAL: stepper(sine_module(LiteralSum(n)))}
        result["literal"][n] = rounds_of(pair, size.rounds[3])
        print(f"steps, literal sum, N = {n}: done", flush=True)
    return result


def without(params: Mapping[str, Any], dropped: Sequence[str]) -> dict[str, Any]:
    """A tree of parameters without the groups of these names."""
    return {
        name: without(value, dropped) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name not in dropped
    }


def sine_module(rule: ops.Rule) -> Method:
    """FDA-BNN with this slope and without noise modules."""
    weight = Quantizer(rule, "layer", scale_in_gradient=False)
    return Method(weight, activation=Quantizer(rule))


def noisy_method(operands: str) -> Method:
    """FDA-BNN with noise modules on these operands only."""
    both, none = make_method("fda"), make_method("fda", noise="none")
    return Method(
        weight=(both if "weights" in operands else none).weight,
        activation=(both if "activations" in operands else none).activation,
    )


def rounds_of(turns: Mapping[str, Turn], rounds: int) -> Answers:
    """Alternate after a turn of each that is not counted."""
    for turn in turns.values():
        turn()
    return sides.alternate(turns, rounds)


def summarize_backward(made: record.Record, size: Size, found: dict[str, Any]) -> dict[str, Line]:
    """Table and goal of the backward pass alone; its lines of the figure."""
    closed, literal = found["closed"], found["literal"]
    copies = {n: sides.ratio(closed[str(n)], closed["copy"]) for n in size.terms}
    lines = {CLOSED: {n: sides.ratio(closed[str(n)], closed["ste"]) for n in size.terms}}
    for name in (LITERAL, LITERAL_FAST, TORCH_LITERAL, TORCH_CLOSED):
        if name in literal[size.terms[0]]:
            lines[name] = {n: sides.ratio(literal[n][name], literal[n]["ste"]) for n in size.terms}
    ste, again = (sides.ratio(closed[name], closed["copy"]) for name in ("ste", "ste again"))
    made.tables.append(
        record.Table(
            f"Backward pass alone, {size.elements:,} float32 elements",
            ["N", "closed form (copy = 1)", *(f"{name} (ste = 1)" for name in lines)],
            [[n, copies[n], *(line[n] for line in lines.values())] for n in size.terms],
            f"Clipped STE takes {ste:.2f} copies, measured a second time {again:.2f}; a copy "
            f"takes {1e3 * sides.median(closed['copy']):.2f} ms here. The unit ste is JAX's "
            "clipped STE in every column.",
        )
    )
    worst = max(copies, key=copies.__getitem__)
    made.goals.append(
        record.Goal(
            f"closed form's backward pass within {COPY_LIMIT:g} copies of its bytes for every N",
            f"{copies[worst]:.2f} copies at N = {worst}, the slowest; "
            f"{min(copies.values()):.2f} the fastest",
            copies[worst] <= COPY_LIMIT,
        )
    )
    return lines


def summarize_steps(made: record.Record, size: Size, found: dict[str, Any]) -> dict[str, Line]:
    """Tables and goal of whole steps; their lines of the figure."""
    closed, literal = found["closed"], found["literal"]
    lines = {
        CLOSED: {n: sides.ratio(closed[str(n)], closed["ste"]) for n in size.terms},
        LITERAL: {n: sides.ratio(literal[n][LITERAL], literal[n]["ste"]) for n in literal},
    }
    again = sides.ratio(closed["ste again"], closed["ste"])
    network, batch = size.setting["network"], size.setting["batch_size"]
    made.tables.append(
        record.Table(
            f"Whole training step of {network}, batch {batch}, without noise modules",
            ["N", *(f"{name} (ste = 1)" for name in lines)],
            [[n, *(line.get(n) for line in lines.values())] for n in size.terms],
            f"Clipped STE measured a second time in the same run: {again:.3f}. A step of it takes "
            f"{1e3 * sides.median(closed['ste']):.0f} ms here.",
        )
    )
    made.tables.append(noise_table(size, closed))
    worst = max(lines[CLOSED], key=lines[CLOSED].__getitem__)
    made.goals.append(
        record.Goal(
            f"whole step with the closed form within {100 * (STEP_LIMIT - 1):.0f} % of clipped "
            "STE's for every N",
            f"{lines[CLOSED][worst]:.3f} of it at N = {worst}, the slowest; {again:.3f} for "
            "clipped STE against itself",
            lines[CLOSED][worst] <= STEP_LIMIT,
        )
    )
    return lines


def noise_table(size: Size, closed: Answers) -> record.Table:
    """Whole steps with noise modules, beside clipped STE and beside the sine module alone."""
    plain = str(size.terms[len(size.terms) // 2])
    rows = {"none, clipped STE": "ste", f"none, N = {plain}": plain}
    rows |= {name: f"noise on {name}" for name in size.noise}
    return record.Table(
        "Noise modules, whole training step",
        ["noise modules on", "time (ste = 1)", f"time (no noise, N = {plain} = 1)"],
        [
            [label, *(sides.ratio(closed[name], closed[to]) for to in ("ste", plain))]
            for label, name in rows.items()
        ],
    )


def sentences(
    made: record.Record, size: Size, alone: dict[str, Line], whole: dict[str, Line]
) -> Sequence[str]:
    """The answer, from the lines and the noise modules' table."""
    last, last_step = size.terms[-1], size.unrolled_terms[-1]
    alone_times, step_times = alone[CLOSED].values(), whole[CLOSED].values()
    copies = [row[1] for row in made.tables[0].rows]
    noise = {row[0]: row[2] for row in made.tables[2].rows}
    noisy = ", ".join(f"{noise[name]:.2f} on {name}" for name in size.noise)
    return [
        f"Alone, the closed form's backward pass takes {min(alone_times):.2f} to "
        f"{max(alone_times):.2f} times clipped STE's for N = {size.terms[0]} to {last} "
        f"({min(copies):.2f} to {max(copies):.2f} copies of its bytes), the literal sum "
        f"{alone[LITERAL][size.terms[0]]:.3g} to {alone[LITERAL][last]:.3g} times.",
        f"A whole training step takes {min(step_times):.3f} to {max(step_times):.3f} times "
        f"clipped STE's; with the literal sum {whole[LITERAL][last_step]:.2f} times at "
        f"N = {last_step}.",
        f"Noise modules lengthen the step of the sine module alone to {noisy} (without = 1).",
    ]


def draw(panels: Sequence[tuple[str, dict[str, Line]]], path: Path) -> None:
    """Time relative to clipped STE against N, a panel each."""
    figure = figures.new_figure(11, 5, dots_per_inch=100)
    for axes, (title, lines) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, line in lines.items():
            colour = figures.COLOURS[LINES.index(name)]
            axes.plot(list(line), list(line.values()), "o-", color=colour, label=name)
        axes.axhline(1.0, color="black", linewidth=1, linestyle="--", label="clipped STE, JAX")
        figures.tidy(axes, title=title, x="number of terms N", y="time (clipped STE = 1)")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        terms = sorted({n for line in lines.values() for n in line})
        axes.set_xticks(terms, labels=map(str, terms))
        axes.minorticks_off()
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    figures.save(figure, path)


if __name__ == "__main__":
    main()
