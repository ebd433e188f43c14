"""Accuracy against cost as an SVG that carries the hash of the rows it shows."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.identity import digest
from bench.placing import apart, beside, plain, spans_much, spread

ROWS_MARK = "rows sha256:"
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe & Ito 2008
_GREY = "#767676"
_STYLES = (("o", "-"), ("s", "--"), ("^", ":"))  # of the first six methods, the next six, ...
_SETTINGS = {
    "svg.hashsalt": "bench",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "axes.formatter.use_locale": False,
}


@dataclass(frozen=True)
class Point:
    """One row: accuracy in percent with its interval, and training seconds a run.

    `role` is the card's; a row of 0 seconds is drawn as a line across.
    """

    label: str
    role: str
    seconds: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """One method's expected best validation score, in percent, after 1, 2, ... trials."""

    label: str
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Sweep:
    """One metric by a setting: (setting, mean, low, high) by rising setting."""

    label: str
    points: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Look:
    """How a row is drawn in every picture of its page."""

    color: str
    marker: str
    line: str


Rows = Sequence[Point] | Sequence[Curve] | Sequence[Sweep]


def rows_sha256(points: Rows) -> str:
    """Return the hash of what a picture shows, whatever the order of its rows."""
    return digest(sorted((asdict(point) for point in points), key=digest))


def figure_is_current(svg: str, points: Rows) -> bool:
    """Return whether an SVG shows these rows; its drawing may be another matplotlib's."""
    found = re.search(rf"<!-- {ROWS_MARK} ([0-9a-f]{{64}}) -->", svg)
    return found is not None and found[1] == rows_sha256(points)


def looks(labels: Iterable[str], methods: Iterable[str]) -> dict[str, Look]:
    """Return each label's look, which depends on the names of a page's methods and on no number.

    The methods have the colours in the order of their names; every other label is grey.
    """
    names = sorted(set(methods))
    found = {label: Look(_GREY, "D", "-") for label in labels}
    for at, name in enumerate(names):
        marker, line = _STYLES[at // len(_COLORS) % len(_STYLES)]
        found[name] = Look(_COLORS[at % len(_COLORS)], marker, line)
    return found


def cost_svg(
    points: Sequence[Point],
    *,
    ylabel: str = "accuracy in percent",
    methods: Iterable[str] | None = None,
) -> str:
    """Return the picture: training seconds on a logarithmic axis, accuracy with its interval.

    Args:
        methods: the names of the page's methods, which have the colours; None for those drawn.
    """
    ordered = sorted(
        points, key=lambda point: (-point.accuracy, point.label, digest(asdict(point)))
    )
    if methods is None:
        methods = [point.label for point in points if point.role == "method"]
    look = looks([point.label for point in points], methods)

    def draw(axes) -> None:
        _draw(axes, ordered, look)
        axes.set_xlabel("training time of a run in seconds")
        axes.set_ylabel(_broken(ylabel), parse_math=False)

    return _svg(draw, rows_sha256(points))


def tuning_svg(
    curves: Sequence[Curve], *, unit: str = "percent", methods: Iterable[str] | None = None
) -> str:
    """Return the picture of expected best validation scores against the number of trials.

    Args:
        methods: as in `cost_svg`.
    """
    ordered = sorted(curves, key=lambda curve: (-curve.scores[-1], curve.label))
    labels = [curve.label for curve in curves]
    look = looks(labels, labels if methods is None else methods)

    def draw(axes) -> None:
        longest = max(len(curve.scores) for curve in ordered)
        ends = [curve.scores[-1] for curve in ordered]
        scores = [score for curve in ordered for score in curve.scores]
        places = apart(ends, scores)
        for curve, place in zip(ordered, places, strict=True):
            color, style = look[curve.label].color, look[curve.label].line
            trials = range(1, len(curve.scores) + 1)
            axes.plot(trials, curve.scores, style, color=color, linewidth=1.2, marker=".")
            axes.annotate(
                plain(curve.label),
                (len(curve.scores), place),
                xytext=(8, 0),
                textcoords="offset points",
                va="center_baseline",
                color=color,
                parse_math=False,
            )
        axes.set_xlim(0.8, longest * 1.35)
        axes.set_xticks(range(1, longest + 1))
        axes.set_xlabel("trials")
        axes.set_ylabel(_broken(f"expected best validation score in {unit}"), parse_math=False)

    return _svg(draw, rows_sha256(curves))


def sweep_svg(
    sweeps: Sequence[Sweep],
    *,
    xlabel: str,
    ylabel: str = "",
    digits: int | None = None,
    methods: Iterable[str] | None = None,
) -> str:
    """Return the picture of metrics by a setting, on a logarithmic axis where it spans much.

    Args:
        digits: significant ones of the numbers along the axis, of which near ones are left out;
            None for all.
        methods: as in `cost_svg`.
    """
    labels = [sweep.label for sweep in sweeps]
    look = looks(labels, labels if methods is None else methods)

    def draw(axes) -> None:
        settings = sorted({point[0] for sweep in sweeps for point in sweep.points})
        if digits is not None:
            settings = spread(sorted({float(f"{s:.{digits - 1}e}") for s in settings}))
        if settings[0] > 0 and settings[-1] > 20 * settings[0]:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(settings, [f"{setting:g}" for setting in settings])
        for sweep in sweeps:
            places, means, lows, highs = zip(*sweep.points, strict=True)
            errors = [
                [mean - low for mean, low in zip(means, lows, strict=True)],
                [high - mean for mean, high in zip(means, highs, strict=True)],
            ]
            color, style = look[sweep.label].color, f".{look[sweep.label].line}"
            label = plain(sweep.label)
            axes.errorbar(
                places, means, yerr=errors, color=color, fmt=style, capsize=2, label=label
            )
        axes.set_xlabel(plain(xlabel), parse_math=False)
        if len(sweeps) > 1:
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
            axes.set_ylabel(plain(ylabel), parse_math=False)
        else:
            axes.set_ylabel(plain(sweeps[0].label), parse_math=False)

    return _svg(draw, rows_sha256(sweeps))


def _svg(draw: Callable[[Any], None], sha256: str) -> str:
    """Return an SVG of one pair of axes that carries the hash of what it shows."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        buffer = io.StringIO()
        with warnings.catch_warnings():  # the reader's fonts draw the text, not matplotlib's
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    head, rest = buffer.getvalue().split("\n", 1)
    return f"{head}\n<!-- {ROWS_MARK} {sha256} -->\n{rest}"


def _draw(axes, points: Sequence[Point], look: Mapping[str, Look]) -> None:
    """Draw points with their intervals, and lines across for rows without training."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    as_is = FuncFormatter(lambda value, _: f"{value:g}")
    trained = [point for point in points if point.seconds > 0]
    ends = [end for point in points for end in (point.low, point.accuracy, point.high)]
    if trained:
        seconds = [point.seconds for point in trained]
        axes.set_xscale("log")
        axes.set_xlim(min(seconds) / 1.5, max(seconds) * 2.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(as_is)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xticks([])
    if spans_much(ends):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(as_is)
        axes.yaxis.set_minor_formatter(NullFormatter())
    for point, (x, y, align) in zip(points, beside(points, ends), strict=True):
        color, marker = look[point.label].color, look[point.label].marker
        if point.seconds > 0:
            errors = [[max(point.accuracy - point.low, 0)], [max(point.high - point.accuracy, 0)]]
            axes.errorbar(
                point.seconds,
                point.accuracy,
                yerr=errors,
                fmt=marker,
                color=color,
                markersize=5,
                capsize=2,
                linewidth=1,
            )
            anchor, transform = (point.seconds, point.accuracy), axes.transData
        else:
            axes.axhline(point.accuracy, color=color, linewidth=0.8, linestyle=(0, (4, 3)))
            anchor, transform = (0.005, point.accuracy), axes.get_yaxis_transform()
        axes.annotate(
            plain(point.label),
            anchor,
            xycoords=transform,
            xytext=(x, y),
            textcoords="offset points",
            ha=align,
            va="center_baseline",
            color=color,
            parse_math=False,
        )


def _broken(label: str) -> str:
    """Return an axis's name in lines that fit beside it."""
    return "\n".join(textwrap.wrap(plain(label, 120), 48))
