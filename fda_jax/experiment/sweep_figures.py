"""Figures of a sweep: accuracies, differences and times at the end, and curves with bands."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator

from fda_jax.experiment.comparison import REFERENCE, Comparison, Entry, Field
from fda_jax.experiment.figures import (
    COLOURS,
    DOTS_PER_INCH,
    MARKS,
    PANEL_INCHES,
    WIDTH_INCHES,
    legend_columns,
    legend_inches,
    new_figure,
    save,
    tidy,
)
from fda_jax.experiment.tables import Run

# So many entries have a colour each and share the panels of curves.
FEW = 7
# What stands out is the baseline, real weights and the most accurate others.
_BASELINE_COLOUR, _REAL_COLOUR, _OTHERS = COLOURS[1], COLOURS[6], "#9a9a9a"
_BEST_COLOURS = (COLOURS[0], COLOURS[2], COLOURS[3], COLOURS[4], COLOURS[5])
_ROW_INCHES, _LETTER_INCHES, _CELL_INCHES = 0.21, 0.15, 1.15
_CELLS_A_ROW, _CELL_LETTERS, _TITLE_LETTERS = 7, 22, 12
_LEAST_FLIPS_PERCENT = 0.01
# Of the horizontal axis' length, between lines of one figure.
_ASIDE = 0.008
_LINE_MARKERS = ("o", "s", "^", "D", "v")

Curve = Sequence[tuple[int, float]]


class Point(NamedTuple):
    """Mean over seeds at an epoch, and their standard deviation (None for one seed)."""

    epoch: int
    mean: float
    deviation: float | None


class Kind(NamedTuple):
    """A kind of curve: its name, its unit, how to get it of a run, and a factor to that unit."""

    title: str
    unit: str
    of: Callable[[Run], Curve]
    factor: float = 1.0


LOSS = Kind("Training loss", "mean loss (nats)", lambda run: run.loss_curve)
FLIPS = Kind(
    "Flips of binary weights",
    "other sign than an epoch before (%)",
    lambda run: run.flips_curve,
    100.0,
)


def accuracy_kind(field: Field) -> Kind:
    """The accuracies of a field's runs."""
    title = f"{field.eval_split.capitalize()} accuracy"
    return Kind(title, "accuracy (%)", lambda run: run.accuracy_curve, 100.0)


def draw_comparison(comparison: Comparison, *paths: Path) -> None:
    """Draw a sweep: accuracies, differences and times at the end, then curves against the epoch.

    An entry has its colour in every panel, and its name beside its row. Up to `FEW` entries share
    the panels of curves, in which a band is a standard deviation to either side; more have a small
    panel each, the others in light grey behind. The picture is 1200 pixels wide.

    Args:
      comparison: of `comparison.read`.
      *paths: files to write, PNG or SVG by their endings.

    Raises:
      OSError: a file cannot be written.
    """
    blocks = [_blocks(field) for field in comparison.fields]
    heights = [sum(height for height, _ in parts) for parts in blocks]
    figure = new_figure(WIDTH_INCHES, sum(heights), dots_per_inch=DOTS_PER_INCH)
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    for row, field, parts in zip(rows[:, 0], comparison.fields, blocks, strict=True):
        row.suptitle(field.title, fontweight="bold")
        inner = row.subfigures(
            len(parts), 1, height_ratios=[height for height, _ in parts], squeeze=False
        )
        for place, (_, draw) in zip(inner[:, 0], parts, strict=True):
            draw(place)
    save(figure, *paths)


def draw_points(comparison: Comparison, *paths: Path) -> None:
    """Draw last accuracy and training time against what the sweep names as its axis.

    Small dots are seeds; a line goes through their means, with a standard deviation to either side.

    Args:
      comparison: of `comparison.read`, with points.
      *paths: files to write, PNG or SVG by their endings.

    Raises:
      OSError: a file cannot be written.
    """
    figure = new_figure(9.0, 3.9 * len(comparison.fields), dots_per_inch=DOTS_PER_INCH * 2)
    rows = figure.subfigures(len(comparison.fields), 1, squeeze=False)
    lines = list(dict.fromkeys(line for line, _, _ in comparison.points))
    for row, field in zip(rows[:, 0], comparison.fields, strict=True):
        row.suptitle(field.title, fontweight="bold")
        accuracy, time = row.subplots(1, 2)
        tidy(
            accuracy, title=f"Last {field.eval_split} accuracy", x=comparison.axis, y="accuracy (%)"
        )
        tidy(time, title="Training time", x=comparison.axis, y="milliseconds a step")
        by_name = {entry.name: entry for entry in field.entries}
        known = sorted({place for _, place, name in comparison.points if name in by_name}) or [0.0]
        for number, line in enumerate(lines):
            # Lines step aside, lest one hides what another shows at the same place.
            aside = _ASIDE * (number - (len(lines) - 1) / 2) * (known[-1] - known[0])
            places = [
                (place + aside, by_name[name])
                for of, place, name in sorted(comparison.points, key=lambda point: point[1])
                if of == line and name in by_name
            ]
            look = {"color": COLOURS[number], "marker": _LINE_MARKERS[number], "label": line}
            _draw_against(accuracy, places, lambda run: _times(100, run.last_accuracy), look)
            _draw_against(time, places, lambda run: _times(1000, run.seconds_per_step), look)
        time.set_ylim(bottom=0)
        for axes in (accuracy, time):
            axes.set_xticks(known, [f"{place:g}" for place in known])
        if len(lines) > 1:
            accuracy.legend(frameon=False)
    save(figure, *paths)


def _draw_against(
    axes: Axes,
    places: Sequence[tuple[float, Entry]],
    value: Callable[[Run], float | None],
    look: Mapping[str, Any],
) -> None:
    means = []
    for place, entry in places:
        known = [found for run in entry.runs if (found := value(run)) is not None]
        axes.plot([place] * len(known), known, ".", color=look["color"], alpha=0.35, markersize=5)
        if known:
            means.append((place, statistics.mean(known), _deviation(known) or 0.0))
    if means:
        x, y, spread = zip(*means, strict=True)
        axes.errorbar(x, y, yerr=spread, capsize=3, linewidth=1.6, markersize=5, **look)


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _blocks(field: Field) -> list[tuple[float, Callable[[SubFigure], None]]]:
    """What a field's picture consists of from top to bottom: heights in inches, and functions."""
    colours = _colours(field)
    height = max(2.6 if len(field.entries) <= FEW else PANEL_INCHES, _rows_inches(field))
    blocks = [(height, lambda row: _draw_ends(row, field, colours, height))]
    if len(field.entries) <= FEW:
        names = [entry.name for entry in field.entries]
        curves_height = PANEL_INCHES + legend_inches(names)
        kinds = [kind for kind in (accuracy_kind(field), LOSS, FLIPS) if _is_curve(kind, field)]
        if kinds:
            blocks.append(
                (curves_height, lambda row: _draw_shared_curves(row, field, kinds, colours))
            )
        return blocks
    for kind in (accuracy_kind(field), LOSS):
        if _is_curve(kind, field):
            blocks.append(
                (
                    _cells_inches(field),
                    lambda row, kind=kind: _draw_cells(row, field, kind, colours),
                )
            )
    return blocks


def _is_curve(kind: Kind, field: Field) -> bool:
    """Whether most runs have more of it than one point."""
    lengths = [len(kind.of(run)) for entry in field.entries for run in entry.runs]
    return statistics.median(lengths) > 1


def _rows_inches(field: Field) -> float:
    return 1.0 + _ROW_INCHES * len(field.entries)


def _cells_inches(field: Field) -> float:
    return 0.7 + _CELL_INCHES * math.ceil(len(field.entries) / _CELLS_A_ROW)


def _colours(field: Field) -> dict[str, str]:
    """The colour of each entry of a field, by its name."""
    few = len(field.entries) <= FEW
    best = iter(_BEST_COLOURS if few else _BEST_COLOURS[:3])
    baselines = {entry.baseline for entry in field.entries}
    colours = {}
    for entry in field.entries:
        is_only = baselines - {""} == {entry.name}
        if is_only or (not baselines - {""} and entry.runs[0].method == REFERENCE):
            colours[entry.name] = _BASELINE_COLOUR
        elif entry.runs[0].method == "full_precision":
            colours[entry.name] = _REAL_COLOUR
        else:
            colours[entry.name] = next(best, _OTHERS)
    return colours


def _draw_ends(row: SubFigure, field: Field, colours: Mapping[str, str], height: float) -> None:
    """Rows of dots: accuracy, difference and time; of many entries the flips beside them."""
    with_flips = len(field.entries) > FEW and any(_has(FLIPS, entry) for entry in field.entries)
    panels = [(3, _draw_accuracies)]
    if any(entry.difference for entry in field.entries):
        panels.append((3, _draw_differences))
    if any(entry.relative_seconds for entry in field.entries):
        panels.append((2, _draw_seconds))
    widths = [width for width, _ in panels] + [4] * with_flips
    axes = row.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for panel, (_, draw) in zip(axes, panels, strict=False):
        _prepare_rows(panel, field, with_names=panel is axes[0])
        draw(panel, field, colours)
    if with_flips:
        _draw_flips(axes[-1], field, colours, gap=_LETTER_INCHES / height)


def _prepare_rows(axes: Axes, field: Field, *, with_names: bool) -> None:
    names = [entry.name if with_names else "" for entry in field.entries]
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) > FEW else 9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _draw_accuracies(axes: Axes, field: Field, colours: Mapping[str, str]) -> None:
    _name_panel(axes, f"Last {field.eval_split} accuracy", "accuracy (%)")
    percents = [_finals(entry) for entry in field.entries]
    known = [value for values in percents for value in values]
    # A part of the recipe is far from what the whole one came to.
    papers = [] if field.is_part else [e.paper for e in field.entries if e.paper is not None]
    for place, (entry, values) in enumerate(zip(field.entries, percents, strict=True)):
        _draw_row(axes, place, values, _deviation(values), colours[entry.name], ".2f")
        if papers and entry.paper is not None:
            axes.plot(entry.paper, place, "D", mfc="white", mec="black", ms=5)
    if papers:
        axes.set_xlabel(f"{axes.get_xlabel()}\ndiamonds: published")
    if known:
        low, high = min(known + papers), max(known + papers)
        margin = max(0.2, 0.08 * (high - low))
        axes.set_xlim(low - margin, high + 3 * margin)
        _draw_chance(axes, field)


def _draw_chance(axes: Axes, field: Field) -> None:
    low, high = axes.get_xlim()
    for times, style, name in ((1, ":", "chance"), (2, "--", "twice that")):
        place = 100 * times / field.num_classes if field.num_classes else math.inf
        if low < place < high:
            axes.axvline(place, color="black", ls=style, lw=1)
            joint = ", " if "\n" in axes.get_xlabel() else "\n"
            look = {":": "dotted", "--": "dashed"}[style]
            axes.set_xlabel(f"{axes.get_xlabel()}{joint}{look}: {name}")


def _draw_differences(axes: Axes, field: Field, colours: Mapping[str, str]) -> None:
    has_intervals = any(entry.difference and entry.difference.half_width for entry in field.entries)
    below = "\nmean of pairs, 95 % interval" if has_intervals else "\none pair each"
    _name_panel(axes, f"Difference to {_baseline(field)}", f"points{below}")
    axes.axvline(0, color="black", linestyle=":", linewidth=1)
    for place, entry in enumerate(field.entries):
        found = entry.difference
        if found is None:
            continue
        width = _times(100, found.half_width)
        _draw_row(axes, place, [100 * found.mean], width, colours[entry.name], "+.2f")
    axes.margins(x=0.2)


def _draw_seconds(axes: Axes, field: Field, colours: Mapping[str, str]) -> None:
    _name_panel(axes, "Time a step", f"{_baseline(field)} = 1")
    for place, entry in enumerate(field.entries):
        values = [] if entry.relative_seconds is None else [entry.relative_seconds]
        _draw_row(axes, place, values, None, colours[entry.name], ".2f")
    axes.axvline(1, color="black", linestyle=":", linewidth=1)
    known = [entry.relative_seconds for entry in field.entries if entry.relative_seconds]
    axes.set_xlim(0, 1.3 * max(known))


def _baseline(field: Field) -> str:
    """Its name, where there is one and it is short."""
    names = {entry.baseline for entry in field.entries} - {""}
    name = min(names) if len(names) == 1 else ""
    return name if name and len(name) <= _TITLE_LETTERS else "baseline"


def _name_panel(axes: Axes, title: str, x: str) -> None:
    tidy(axes, title=title, x=x, y="")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _draw_row(
    axes: Axes,
    place: int,
    values: Sequence[float],
    half_width: float | None,
    colour: str,
    form: str,
) -> None:
    """The mean of the values as a dot, a bar of this half width, and the single ones as ticks."""
    if not values:
        return
    middle = statistics.mean(values)
    if len(values) > 1:
        axes.plot(values, [place] * len(values), "|", color=colour, markersize=7, alpha=0.6)
    axes.errorbar(middle, place, xerr=half_width, fmt="o", color=colour, markersize=6, capsize=3)
    right = max(*values, middle + (half_width or 0.0))
    axes.annotate(
        format(middle, form),
        (right, place),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


def _draw_shared_curves(
    row: SubFigure, field: Field, kinds: Sequence[Kind], colours: Mapping[str, str]
) -> None:
    for axes, kind in zip(row.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        tidy(axes, title=kind.title, x="epoch", y=kind.unit)
        for entry in reversed(field.entries):  # the most accurate is drawn last
            _draw_band(axes, _band(kind, entry), colours[entry.name], label=entry.name)
        if kind is FLIPS:
            _scale_flips(axes)
        _whole_epochs(axes, field)
    handles, names = row.axes[0].get_legend_handles_labels()
    columns = legend_columns(names)
    row.legend(handles[::-1], names[::-1], loc="outside lower center", ncols=columns, frameon=False)


def _scale_flips(axes: Axes) -> None:
    most = axes.dataLim.ymax
    axes.set_yscale("symlog", linthresh=_LEAST_FLIPS_PERCENT)
    axes.set_ylim(0, 1.5 * most if most > 0 else None)


def _draw_flips(axes: Axes, field: Field, colours: Mapping[str, str], *, gap: float) -> None:
    tidy(axes, title=FLIPS.title, x="epoch", y=FLIPS.unit)
    ends = {}
    for entry in reversed(field.entries):  # what stands out is drawn last
        curve = _band(FLIPS, entry)
        if not curve:
            continue
        _draw_band(axes, curve, colours[entry.name])
        ends[entry.name] = (curve[-1].epoch, curve[-1].mean)
    _scale_flips(axes)
    _whole_epochs(axes, field)
    _name_lines(axes, ends, colours, gap=gap)


def _draw_cells(row: SubFigure, field: Field, kind: Kind, colours: Mapping[str, str]) -> None:
    """A small panel for each entry, with all others in light grey behind it."""
    unit = kind.unit.removeprefix("mean ")
    row.suptitle(f"{kind.title}: {unit} against the epoch", x=0.02, ha="left", fontsize=12)
    lines = math.ceil(len(field.entries) / _CELLS_A_ROW)
    cells = list(row.subplots(lines, _CELLS_A_ROW, sharex=True, sharey=True, squeeze=False).flat)
    curves = [_band(kind, entry) for entry in field.entries]
    highest = _highest_shown([[point.mean for point in curve] for curve in curves if curve])
    for cell, entry, own in zip(cells, field.entries, curves, strict=False):
        for curve in curves:
            cell.plot(*_columns_of(curve), color="#dddddd", linewidth=0.6)
        strong = colours[entry.name].replace(_OTHERS, "#444444")
        _draw_band(cell, own, strong)
        if own and own[-1].mean > highest:
            words = f"ends at {own[-1].mean:.3g}"
            cell.text(0.5, 0.5, words, transform=cell.transAxes, fontsize=7)
        name = entry.name
        short = name if len(name) <= _CELL_LETTERS else name[: _CELL_LETTERS - 1] + "…"
        cell.set_title(short, loc="left", fontsize=8, color=strong, pad=3)
        cell.tick_params(labelsize=7)
        cell.spines[["top", "right"]].set_visible(False)
        _whole_epochs(cell, field)
    for cell in cells[len(field.entries) :]:
        cell.set_axis_off()
    lowest = min((point.mean for curve in curves for point in curve), default=0.0)
    margin = 0.05 * (highest - lowest)
    cells[0].set_ylim(lowest - margin, highest + margin)


def _highest_shown(curves: Sequence[Sequence[float]]) -> float:
    """So that a run that diverges leaves its panel, rather than press all others flat."""
    limit = 2 * statistics.median(map(max, curves)) if curves else 1.0
    return max((value for curve in curves for value in curve if value <= limit), default=limit)


def _has(kind: Kind, entry: Entry) -> bool:
    return any(kind.of(run) for run in entry.runs)


def _finals(entry: Entry) -> list[float]:
    """Last accuracies in %."""
    return [100 * run.last_accuracy for run in entry.runs if run.last_accuracy is not None]


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _band(kind: Kind, entry: Entry) -> list[Point]:
    """Mean and deviation over seeds, up to the epoch that all of them have reached."""
    band = []
    for points in zip(*(kind.of(run) for run in entry.runs), strict=False):
        values = [kind.factor * value for _, value in points]
        band.append(Point(points[0][0], statistics.mean(values), _deviation(values)))
    return band


def _columns_of(curve: Sequence[Point]) -> tuple[list[int], list[float]]:
    return [point.epoch for point in curve], [point.mean for point in curve]


def _draw_band(axes: Axes, curve: Sequence[Point], colour: str, label: str | None = None) -> None:
    """A line with its band; those that do not stand out are thin."""
    width, size = (0.9, 0) if colour == _OTHERS else (1.6, 4 if len(curve) <= MARKS else 0)
    if len(curve) == 1:
        size = 4  # a line of one point is invisible without
    epochs, means = _columns_of(curve)
    axes.plot(epochs, means, color=colour, lw=width, marker="o", markersize=size, label=label)
    if all(point.deviation is not None for point in curve):
        low, high = ([p.mean + sign * (p.deviation or 0) for p in curve] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)


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
