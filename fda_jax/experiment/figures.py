"""Figures of runs, and what all figures share: colours, frames, files. No global state."""

import dataclasses
import io
import math
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

from fda_jax.experiment.tables import Group, Run

# Okabe and Ito's palette, which colour-blind readers tell apart; its yellow is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")
# For every further turn through the colours.
_MARKERS = ("", "s", "^", "D")
WIDTH_INCHES, PANEL_INCHES, _LEGEND_LINE_INCHES = 12.0, 4.2, 0.24
DOTS_PER_INCH = 100
# That fit into the width.
_LEGEND_LETTERS = 140
# Marks on a line; more of them hide it, and a line of one point is invisible without.
MARKS = 15


def draw_curves(groups: Sequence[Group], *paths: Path) -> None:
    """Draw accuracy and training loss against the epoch, one row of panels a group.

    A configuration has a colour, its seeds a line style each. The picture is 1200 pixels wide.

    Args:
      groups: of `tables.group_runs`, at least one.
      *paths: files to write, PNG or SVG by their endings.

    Raises:
      OSError: a file cannot be written.
    """
    heights = [PANEL_INCHES + legend_inches(_names(group)) for group in groups]
    figure = new_figure(WIDTH_INCHES, sum(heights), dots_per_inch=DOTS_PER_INCH)
    rows = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)
    for row, group in zip(rows[:, 0], groups, strict=True):
        _draw_group(row, group)
    save(figure, *paths)


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


def save(figure: Figure, *paths: Path) -> None:
    """Write a figure, without the version that drew it and the time.

    Args:
      figure: of `new_figure`.
      *paths: of the files, PNG or SVG by their endings.

    Raises:
      OSError: a file cannot be written.
    """
    for path in paths:
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
    row.suptitle(group.title, fontweight="bold")
    accuracy, loss = row.subplots(1, 2)
    tidy(accuracy, title=f"{group.eval_split.capitalize()} accuracy", x="epoch", y="accuracy (%)")
    tidy(loss, title="Training loss", x="epoch", y="mean loss (nats)")
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
        ncols=legend_columns(_names(group)),
        frameon=False,
        handlelength=2.8,
    )


def _draw_line(axes: Axes, points: Sequence[tuple[int, float]], look: Mapping[str, Any]) -> Line2D:
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    (line,) = axes.plot(epochs, values, **look, linewidth=1.6, markersize=4)
    if len(points) <= MARKS and not look["marker"]:
        line.set_marker("o")
    line.set_markevery(max(1, math.ceil(len(points) / MARKS)))
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


def legend_columns(names: Sequence[str]) -> int:
    """Columns of a legend below a figure: what the longest name allows, in lines of like length."""
    most = max(1, _LEGEND_LETTERS // (max(map(len, names)) + 8))
    return math.ceil(len(names) / math.ceil(len(names) / most))


def legend_inches(names: Sequence[str]) -> float:
    """Height of that legend."""
    return _LEGEND_LINE_INCHES * math.ceil(len(names) / legend_columns(names))
