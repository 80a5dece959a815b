"""Figures of runs. The only home of matplotlib, without its global state."""

import dataclasses
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fda_jax.experiment.comparison import REFERENCE, Comparison, Field
from fda_jax.experiment.tables import Group, Run

# Okabe and Ito's palette, which colour-blind readers tell apart; its yellow is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")
# For every further turn through the colours.
_MARKERS = ("", "s", "^", "D")
_WIDTH_INCHES, _PANEL_INCHES, _LEGEND_LINE_INCHES = 12.0, 4.2, 0.24
_DOTS_PER_INCH = 100
# That fit into the width.
_LEGEND_LETTERS = 140
# Marks on a line; more of them hide it, and a line of one point is invisible without.
_MARKS = 15

# Of a comparison: what stands out is the reference, real weights and the most accurate others.
_REFERENCE_COLOUR, _REAL_COLOUR, _OTHERS = "#D55E00", "#000000", "#9a9a9a"
_BEST_COLOURS = ("#0072B2", "#009E73", "#CC79A7")
_BAR_INCHES, _LETTER_INCHES, _CELL_INCHES = 0.21, 0.15, 1.15
_CELLS_A_ROW = 7
_CELL_LETTERS = 22
_LEAST_FLIPS_PERCENT = 0.01


def draw_curves(groups: Sequence[Group], path: Path) -> None:
    """Draw test accuracy and training loss against the epoch, one row of panels a group.

    A configuration has a colour, its seeds a line style each. The picture is 1200 pixels wide.

    Args:
      groups: of `tables.group_runs`, at least one.
      path: PNG file to write.

    Raises:
      OSError: the file cannot be written.
    """
    heights = [_PANEL_INCHES + _legend_inches(group) for group in groups]
    figure = new_figure(_WIDTH_INCHES, sum(heights), dots_per_inch=_DOTS_PER_INCH)
    rows = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)
    for row, group in zip(rows[:, 0], groups, strict=True):
        _draw_group(row, group)
    save(figure, path)


def draw_comparison(comparison: Comparison, *paths: Path) -> None:
    """Draw a sweep: accuracies and times as bars, flips and losses against the epoch.

    Few runs have a colour, the same in every panel; each has its name beside its bar and its line
    and above its own panel of the loss. The picture is 1200 pixels wide.

    Args:
      comparison: of `comparison.read`.
      *paths: files to write, PNG or SVG by their endings.

    Raises:
      OSError: a file cannot be written.
    """
    sizes = [(_bars_inches(field), _cells_inches(field)) for field in comparison.fields]
    heights = [sum(size) for size in sizes]
    figure = new_figure(_WIDTH_INCHES, sum(heights), dots_per_inch=_DOTS_PER_INCH)
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    for row, field, size in zip(rows[:, 0], comparison.fields, sizes, strict=True):
        row.suptitle(f"{field.network} on {field.dataset}", fontweight="bold")
        top, bottom = row.subfigures(2, 1, height_ratios=size)
        accuracy, seconds, flips = top.subplots(1, 3, width_ratios=(3, 2, 4))
        colours = _colours(field)
        _draw_accuracies(accuracy, field, colours)
        _draw_seconds(seconds, field, colours)
        _draw_flips(flips, field, colours, gap=_LETTER_INCHES / size[0])
        _draw_losses(bottom, field, colours)
    for path in paths:
        save(figure, path)


def new_figure(width_inches: float, height_inches: float, *, dots_per_inch: int) -> Figure:
    """An empty white figure that belongs to no window and no global list.

    Args:
      width_inches: > 0.
      height_inches: > 0.
      dots_per_inch: > 0; pixels are inches times this.

    Returns:
      A Figure with an Agg canvas and a layout that keeps texts apart.
    """
    figure = Figure(
        (width_inches, height_inches),
        dpi=dots_per_inch,
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07),
    )
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, *, title: str, x: str, y: str) -> None:
    """Name a panel and its axes, and keep of its frame what is read.

    Args:
      axes: the panel.
      title: of the panel.
      x: name of the horizontal axis, with its unit.
      y: name of the vertical axis, with its unit.
    """
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e0e0e0", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, without the version that drew it and the time.

    Args:
      figure: of `new_figure`.
      path: of the file, a PNG or an SVG by its ending.

    Raises:
      OSError: the file cannot be written.
    """
    _write(figure, path, path.suffix[1:])


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that a Jupyter notebook shows where it is a cell's value.

    Attributes:
      png: its file's content.
    """

    png: bytes = dataclasses.field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


def picture(figure: Figure) -> Picture:
    """A figure as what a notebook shows, without the version that drew it and the time.

    Args:
      figure: of `new_figure`.

    Returns:
      A `Picture`.
    """
    content = io.BytesIO()
    _write(figure, content, "png")
    return Picture(content.getvalue())


def _write(figure: Figure, target: Path | io.BytesIO, form: str) -> None:
    # A user's matplotlibrc must not crop the picture or make it transparent.
    fixed: dict[Any, Any] = {
        "savefig.bbox": None,
        "savefig.transparent": False,
        "svg.hashsalt": "fda_jax",
    }
    metadata = {"Creator": None, "Date": None} if form == "svg" else {"Software": None}
    with mpl.rc_context(fixed):
        figure.savefig(target, format=form, metadata=metadata)


def _draw_group(row: SubFigure, group: Group) -> None:
    row.suptitle(f"{group.network} on {group.dataset}", fontweight="bold")
    accuracy, loss = row.subplots(1, 2)
    tidy(accuracy, title="Test accuracy", x="epoch", y="accuracy (%)")
    tidy(loss, title="Training loss", x="epoch", y="mean cross-entropy (nats)")
    lines = []
    for number, configuration in enumerate(group.configurations):
        marker = _MARKERS[number // len(COLOURS) % len(_MARKERS)]
        for i, run in enumerate(configuration.runs):
            look = {
                "color": COLOURS[number % len(COLOURS)],
                "linestyle": _STYLES[i % len(_STYLES)],
                "marker": marker,
            }
            percent = [(epoch, 100 * value) for epoch, value in run.accuracy_curve]
            _draw_line(accuracy, percent, look)
            lines.append(_draw_line(loss, run.loss_curve, look))
    epochs = max(run.epochs for part in group.configurations for run in part.runs)
    for axes in (accuracy, loss):
        axes.set_xlim(0, 1.03 * max(1, epochs))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    row.legend(
        lines,
        _names(group),
        loc="outside lower center",
        ncols=_columns(group),
        frameon=False,
        handlelength=2.8,
    )


def _draw_line(axes: Axes, points: Sequence[tuple[int, float]], look: Mapping[str, Any]) -> Line2D:
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    (line,) = axes.plot(epochs, values, **look, linewidth=1.6, markersize=4)
    if len(points) <= _MARKS and not look["marker"]:
        line.set_marker("o")
    line.set_markevery(max(1, math.ceil(len(points) / _MARKS)))
    return line


def _names(group: Group) -> list[str]:
    return [
        _name(run, configuration.label)
        for configuration in group.configurations
        for run in configuration.runs
    ]


def _name(run: Run, label: str) -> str:
    done = "" if run.is_finished else f", {run.epochs}/{run.planned_epochs} epochs"
    name = f"{run.name}: {label}, seed {run.seed}{done}"
    return name if len(name) <= _LEGEND_LETTERS else name[: _LEGEND_LETTERS - 1] + "…"


def _columns(group: Group) -> int:
    """As many as the longest name allows."""
    names = _names(group)
    return max(1, min(len(names), _LEGEND_LETTERS // (max(map(len, names)) + 8)))


def _legend_inches(group: Group) -> float:
    return _LEGEND_LINE_INCHES * math.ceil(len(_names(group)) / _columns(group))


def _colours(field: Field) -> dict[str, str]:
    """The colour of each entry of a comparison, by its name."""
    best = iter(_BEST_COLOURS)
    colours = {}
    for entry in field.entries:
        if entry.runs[0].method == REFERENCE:
            colours[entry.name] = _REFERENCE_COLOUR
        elif entry.runs[0].method == "full_precision":
            colours[entry.name] = _REAL_COLOUR
        else:
            colours[entry.name] = next(best, _OTHERS)
    return colours


def _bars_inches(field: Field) -> float:
    return max(_PANEL_INCHES, 1.0 + _BAR_INCHES * len(field.entries))


def _cells_inches(field: Field) -> float:
    return 0.7 + _CELL_INCHES * math.ceil(len(field.entries) / _CELLS_A_ROW)


def _draw_accuracies(axes: Axes, field: Field, colours: Mapping[str, str]) -> None:
    tidy(axes, title="Last test accuracy", x="accuracy (%)", y="")
    if field.num_classes:
        axes.set_xlabel("accuracy (%)\ndotted: chance, dashed: twice that")
        for times, style in ((1, ":"), (2, "--")):
            axes.axvline(100 * times / field.num_classes, color="black", ls=style, lw=1)
    seeds = [[run.last_accuracy for run in entry.runs] for entry in field.entries]
    percents = [[100 * value for value in values if value is not None] for values in seeds]
    _draw_bars(axes, field, colours, percents, ".1f")


def _draw_seconds(axes: Axes, field: Field, colours: Mapping[str, str]) -> None:
    tidy(axes, title="Time a step", x=f"{REFERENCE} = 1", y="")
    times = [entry.relative_seconds for entry in field.entries]
    _draw_bars(axes, field, colours, [[] if value is None else [value] for value in times], ".2f")
    axes.set_yticklabels([])
    axes.axvline(1, color="black", linestyle=":", linewidth=1)


def _draw_bars(
    axes: Axes,
    field: Field,
    colours: Mapping[str, str],
    values: Sequence[Sequence[float]],
    form: str,
) -> None:
    """A bar up to the mean of each entry's values, the first entry on top, and a mark for each."""
    names = [entry.name for entry in field.entries]
    for place, (name, known) in enumerate(zip(names, values, strict=True)):
        if not known:
            continue
        middle = statistics.mean(known)
        axes.barh(place, middle, color=colours[name], height=0.72)
        if len(known) > 1:
            axes.plot(known, [place] * len(known), "k|", markersize=5)
        axes.annotate(
            format(middle, form),
            (max(known), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max((value for known in values for value in known), default=1.0))
    axes.grid(visible=False, axis="y")


def _draw_flips(axes: Axes, field: Field, colours: Mapping[str, str], *, gap: float) -> None:
    tidy(axes, title="Flips of binary weights", x="epoch", y="other sign than an epoch before (%)")
    axes.set_yscale("symlog", linthresh=_LEAST_FLIPS_PERCENT)
    ends = {}
    for entry in reversed(field.entries):  # what stands out is drawn last
        curve = _mean_curve([run.flips_curve for run in entry.runs])
        if not curve:
            continue
        percent = [(epoch, 100 * share) for epoch, share in curve]
        _draw_curve(axes, percent, colours[entry.name])
        ends[entry.name] = percent[-1]
    axes.set_ylim(bottom=0)
    _whole_epochs(axes, field)
    _name_lines(axes, ends, colours, gap=gap)


def _draw_losses(row: SubFigure, field: Field, colours: Mapping[str, str]) -> None:
    """A small panel for each entry, with all others in light grey behind it."""
    row.suptitle("Training loss (nats) against the epoch", x=0.02, ha="left", fontsize=12)
    lines = math.ceil(len(field.entries) / _CELLS_A_ROW)
    cells = list(row.subplots(lines, _CELLS_A_ROW, sharex=True, sharey=True, squeeze=False).flat)
    curves = [_mean_curve([run.loss_curve for run in entry.runs]) for entry in field.entries]
    highest = _highest_shown([value for curve in curves for _, value in curve])
    for cell, entry, own in zip(cells, field.entries, curves, strict=False):
        for curve in curves:
            cell.plot(*_columns_of(curve), color="#dddddd", linewidth=0.6)
        strong = colours[entry.name].replace(_OTHERS, "#444444")
        _draw_curve(cell, own, strong)
        if own and own[-1][1] > highest:
            cell.text(0.5, 0.5, f"ends at {own[-1][1]:.3g}", transform=cell.transAxes, fontsize=7)
        name = entry.name
        short = name if len(name) <= _CELL_LETTERS else name[: _CELL_LETTERS - 1] + "…"
        cell.set_title(short, loc="left", fontsize=8, color=strong, pad=3)
        cell.tick_params(labelsize=7)
        cell.spines[["top", "right"]].set_visible(False)
        _whole_epochs(cell, field)
    for cell in cells[len(field.entries) :]:
        cell.set_axis_off()
    lowest = min((value for curve in curves for _, value in curve), default=0.0)
    margin = 0.05 * (highest - lowest)
    cells[0].set_ylim(lowest - margin, highest + margin)


def _highest_shown(losses: Sequence[float]) -> float:
    """So that a run that diverges leaves its panel, rather than press all others flat."""
    limit = 2 * statistics.median(losses) if losses else 1.0
    return max((value for value in losses if value <= limit), default=limit)


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean over seeds, up to the epoch that all of them have reached."""
    return [
        (points[0][0], statistics.mean(value for _, value in points))
        for points in zip(*curves, strict=False)
    ]


def _columns_of(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _draw_curve(axes: Axes, points: Sequence[tuple[int, float]], colour: str) -> None:
    """A line of a comparison; those that do not stand out are thin."""
    width, size = (0.9, 0) if colour == _OTHERS else (1.6, 4 if len(points) <= _MARKS else 0)
    if len(points) == 1:
        size = 4  # a line of one point is invisible without
    axes.plot(*_columns_of(points), color=colour, linewidth=width, marker="o", markersize=size)


def _whole_epochs(axes: Axes, field: Field) -> None:
    epochs = max((run.epochs for entry in field.entries for run in entry.runs), default=1)
    axes.set_xlim(0, 1.03 * max(1, epochs))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))


def _name_lines(
    axes: Axes,
    ends: Mapping[str, tuple[int, float]],
    colours: Mapping[str, str],
    *,
    gap: float,
) -> None:
    """Write each line's name to the right of its end, moved apart as far as they overlap.

    Args:
      axes: the panel, its limits set.
      ends: last point of each line by its name.
      colours: of the lines.
      gap: least distance of two names, as a share of the panel's height.
    """
    to_share = (axes.transData - axes.transAxes).transform
    heights = {name: float(to_share(end)[1]) for name, end in ends.items()}
    names = sorted(heights, key=lambda name: heights[name])
    for name, place in zip(names, _apart([heights[name] for name in names], gap), strict=True):
        axes.annotate(
            name,
            xy=ends[name],
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color="#555555" if colours[name] == _OTHERS else colours[name],
            arrowprops={"arrowstyle": "-", "color": "#cccccc", "linewidth": 0.5, "shrinkA": 0},
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved apart to this least distance, as little as possible, inside [0, 1]."""
    # Nearest in least squares: without the gaps they must not fall, so neighbours that do are
    # pooled to their mean.
    pools: list[list[float]] = []
    for i, height in enumerate(heights):
        pools.append([height - i * gap])
        while len(pools) > 1 and statistics.mean(pools[-2]) > statistics.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    room = max(0.0, 1.0 - gap * (len(heights) - 1))
    pooled = [min(max(statistics.mean(pool), 0.0), room) for pool in pools for _ in pool]
    return [height + i * gap for i, height in enumerate(pooled)]
