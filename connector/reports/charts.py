"""Charts by matplotlib, as SVG inside a page: text stays text, and colours are the page's, in light, dark and print.

A function of a chart returns a matplotlib `Figure`; `svg` turns it into markup.
"""

import html
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from io import StringIO
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from alignment.retrieval.seen_unseen import SeenUnseenCurve
from connector.audits.result import PcaProjection
from connector.audits.stage_summary import StageSummary
from connector.reports.glossary import UNCHANGED, kind_of, signed
from connector.reports.page_files import BIDI_CONTROLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

# Custom CSS properties of the page, each with the colour of a picture outside a page.
PAGE_COLOURS = {
    "ink": "#1b1f24",
    "soft": "#5b6673",
    "line": "#e2e4e8",
    "good": "#1a7f4b",
    "bad": "#b3261e",
    "text": "#1f6fb4",
    "image": "#b8500f",
    "both": "#6b46a8",
}
# Placeholder colours for matplotlib, which `svg` replaces.
COLOURS = {name: f"#0{number}fe0{number}" for number, name in enumerate(PAGE_COLOURS)}
KINDS: dict[str, dict[str, Any]] = {
    "text": {"color": COLOURS["text"], "marker": "o"},
    "image": {"color": COLOURS["image"], "marker": "s"},
    "both": {"color": COLOURS["both"], "marker": "D"},
    "chance": {"color": COLOURS["soft"], "linestyle": "--", "linewidth": 1.2},
}
OUTCOMES = {"worse": COLOURS["bad"], "better": COLOURS["good"], "same": COLOURS["soft"]}
WIDTH = 440  # points, the width of a phone, so that text stays readable there
ROW = 30  # points, height of a row of a bar chart
LONGEST_NAME, LONGEST_TITLE = 20, 60  # characters
PIXELS_A_POINT = 1.2
SAME = 0.0005  # values that differ by less print alike
NARROWEST = 0.05  # smallest range of an axis, so that tiny differences do not look large
STYLE: Any = {
    "svg.fonttype": "none",  # text as text
    "svg.hashsalt": "modalign",  # the same picture twice is the same file
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": COLOURS["line"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["soft"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True, slots=True)
class Line:
    """Values of one kind: `text`, `image`, `both` or `chance`, each with a colour and a marker of its own.

    Attributes:
        low, high: ends of the intervals, same length as `y`; empty: no intervals.
    """

    kind: str
    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """A named value with its interval and number of queries."""

    name: str
    value: float
    low: float | None
    high: float | None
    queries: int


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to draw in the style of the pages."""

    @wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> R:
        import matplotlib as mpl  # takes half a second to import, and only pages need it

        with mpl.rc_context(STYLE):
            return draw(*args, **options)

    return drawn


@styled
def svg(figure: "Figure", css: str = "chart") -> str:
    """Return a figure as `<svg>` with the CSS classes `css`; its label is for screen readers."""
    buffer = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, bbox_inches="tight", pad_inches=0.05)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for name, colour in COLOURS.items():
        drawn = drawn.replace(colour, f"var(--{name}, {PAGE_COLOURS[name]})")
    # Numbered ids of matplotlib would repeat on a page. Our ids become classes, and titles of shortened labels.
    drawn = re.sub(r' id="[A-Za-z.0-9]+_\d+"', "", drawn)
    drawn = re.sub(r'<g id="title:([^"]*)">', r"<g><title>\1</title>", drawn)
    drawn = re.sub(r'<g id="([a-z-]+)">', r'<g class="\1">', drawn)
    head, end, rest = drawn.partition(">")
    width = float(re.findall(r'viewBox="\S+ \S+ (\S+) ', head)[0])
    head = re.sub(r' (?:width|height|version)="[^"]*"', "", head)  # scales with the page
    label = html.escape(str(figure.get_label()).translate(BIDI_CONTROLS))
    # A map of many cells keeps its size where a page is narrow, and scrolls: its numbers would be too small to read.
    least = f"; min-width: {width:.0f}px" if "heat" in css.split() else ""
    style = f"max-width: {PIXELS_A_POINT * width:.0f}px{least}"
    attributes = f'class="{css}" role="img" aria-label="{label}" style="{style}"'
    return f"<svg {attributes}{head.removeprefix('<svg')}{end}{rest}"


@styled
def lines(
    title: str,
    drawn: Sequence[Line],
    *,
    x_title: str,
    x_ticks: Sequence[tuple[float, str]],
    floor: float = 0.0,
    ceiling: float = math.inf,
    band: bool = False,
    rules: Sequence[float] = (),
    crosses: Sequence[float] = (),
    log: bool = False,
) -> "Figure":
    """Draw values over x, with their intervals.

    Args:
        title: title of the chart.
        drawn: the lines.
        x_title: label of the x axis.
        x_ticks: x positions with their labels.
        floor, ceiling: bounds of the y axis.
        band: draw intervals as an area instead of bars.
        rules: x positions of vertical lines, where something changed.
        crosses: x positions where nothing could be measured.
        log: use a logarithmic x axis.
    """
    from matplotlib.transforms import offset_copy

    figure, axes = _figure(title, 210)
    for number, line in enumerate(drawn):
        style: dict[str, Any] = {"markersize": 5, **KINDS[line.kind]}
        if line.low and band:
            axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.16, linewidth=0)
        elif line.low:  # side by side, so that no bar hides another
            style["transform"] = offset_copy(axes.transData, figure, x=4 * number, units="points")
            axes.vlines(line.x, line.low, line.high, linewidth=1.2, **{k: style[k] for k in ("color", "transform")})
        axes.plot(line.x, line.y, label=line.label or "_", **style)
    if log:
        axes.set_xscale("log")
        axes.minorticks_off()
    places = [x for line in drawn for x in line.x] + [place for place, _ in x_ticks]
    first, last = min(places), max(places)
    axes.set_xlim(*((first * 0.9, last * 1.1) if log else limits((first, last), least=1.0, floor=-math.inf)))
    axes.set_xticks([place for place, _ in x_ticks], [label for _, label in x_ticks])
    for place in rules:
        axes.axvline(place, color=COLOURS["soft"], linestyle=":", linewidth=1)
    if crosses:
        along = axes.get_xaxis_transform()
        style = {"color": COLOURS["bad"], "markeredgewidth": 2, "gid": "cross"}
        axes.plot(crosses, [0.05] * len(crosses), "x", transform=along, **style)
    axes.set_xlabel(x_title)
    axes.grid(axis="y")
    _limit(axes, [*_values(drawn)], floor, ceiling)
    if any(line.label for line in drawn):
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0)
        axes.set_title(axes.get_title(loc="left"), pad=24)
    return figure


@styled
def seen_unseen(
    title: str,
    kind: str,
    drawn: SeenUnseenCurve,
    marked: Sequence[tuple[str, float, float]],
    others: Sequence[SeenUnseenCurve] = (),
) -> "Figure":
    """Draw the recall of seen items over that of unseen ones as the offset grows.

    Args:
        title: title of the chart.
        kind: of the queries, which has a colour.
        drawn: the curve.
        marked: points of it with a name: that, Recall@K of unseen items, and of seen ones.
        others: curves to compare it with, thin and without names.
    """
    figure, axes = _figure(title, 300)
    style = {**KINDS[kind], "marker": "none"}
    for other in others:
        axes.plot(other.unseen, other.seen, gid="other-curve", color=COLOURS["soft"], linewidth=0.7, alpha=0.7)
    axes.plot(drawn.unseen, drawn.seen, gid="curve", **style)
    axes.fill_between(drawn.unseen, drawn.seen, color=style["color"], alpha=0.1, linewidth=0)
    for number, (name, x, y) in enumerate(marked):
        face = COLOURS["ink"] if number == len(marked) - 1 else "none"
        axes.plot([x], [y], "o", markersize=7, markerfacecolor=face, markeredgecolor=COLOURS["ink"], gid="marked")
        side = -1 if x > 0.6 * drawn.unseen.max() else 1
        # The higher point has its name above it and the lower one below, so that names of close points stay apart.
        is_highest = len(marked) > 1 and (y, -number) == max((each[2], -n) for n, each in enumerate(marked))
        beside = (8 * side, 6 if is_highest else -14)
        axes.annotate(name, (x, y), xytext=beside, textcoords="offset points", ha="left" if side > 0 else "right")
    axes.set_xlabel(f"Recall@{drawn.k} of new items")
    axes.set_ylabel(f"Recall@{drawn.k} of known items")
    axes.tick_params(pad=7)  # both axes begin with 0.0
    axes.grid(axis="both")
    curves = [drawn, *others]
    axes.set_xlim(0, limits([x for curve in curves for x in curve.unseen.tolist()], ceiling=1.0)[1])
    axes.set_ylim(0, 1.12 * max(*(float(curve.seen.max()) for curve in curves), NARROWEST))
    return figure


@styled
def waterfall(title: str, stages: Sequence[StageSummary], k: int) -> "Figure":
    """Draw Recall@`k` of the stages of one direction, each with its change against its `against` stage."""
    figure, axes = _rows(title, [stage.name for stage in stages])
    levels = {stage.name: (row, stage.recall[k].value) for row, stage in enumerate(stages) if stage.recall}
    column, change = _column(axes, 1.03, f"R@{k}"), _column(axes, 1.32, "change")
    ends: list[float] = []
    for row, stage in enumerate(stages):
        if not stage.recall:
            why = "not measured" if stage.why_not else "nothing to find"
            axes.text(0.02, row, why, transform=axes.get_yaxis_transform(), va="center", color=COLOURS["soft"])
            continue
        level = stage.recall[k].value
        ends.append(level)
        axes.plot([level, level], [row - 0.3, row + 0.3], color=COLOURS["ink"], linewidth=2.5)
        column(row, f"{level:.3f}")
        if stage.lost is None:
            continue
        before, kind = level + stage.lost.value, kind_of(stage.lost)
        low, high = before - stage.lost.high, before - stage.lost.low
        ends += [before, low, high]
        axes.barh(row, before - level, left=level, height=0.46, color=OUTCOMES[kind], alpha=0.75, gid=f"loss-{kind}")
        axes.plot([low, high], [row, row], color=COLOURS["ink"], linewidth=1.2)
        changed = signed(-stage.lost.value)
        if changed == UNCHANGED:
            change(row, "nothing lost", color=COLOURS["soft"])
        else:
            change(row, changed, color=OUTCOMES[kind], weight="bold")
        if stage.against in levels:
            above, value = levels[stage.against]
            axes.plot([value, value], [above + 0.3, row - 0.3], color=COLOURS["soft"], linestyle=":", linewidth=1)
    axes.set_xlim(*waterfall_range(ends))
    return figure


@styled
def bars(title: str, kind: str, drawn: Sequence[Bar]) -> "Figure":
    """Draw a bar per value from 0, with its interval."""
    figure, axes = _rows(title, [bar.name for bar in drawn])
    values, queries = _column(axes, 1.03, ""), _column(axes, 1.5, "queries", ha="right")
    for row, bar in enumerate(drawn):
        axes.barh(row, bar.value, height=0.5, color=KINDS[kind]["color"], alpha=0.55, gid="bar")
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [row, row], color=COLOURS["ink"], linewidth=1.2)
        values(row, f"{bar.value:.3f}")
        queries(row, f"{bar.queries:,}", color=COLOURS["soft"])
    axes.set_xlim(0, max(0.1, *(bar.value if bar.high is None else bar.high for bar in drawn)))
    return figure


@styled
def scatter(plane: PcaProjection) -> "Figure":
    """Draw images and texts of the shared space with joined pairs and equal scales."""
    from matplotlib.collections import LineCollection

    figure, axes = _figure(f"{len(plane.images)} pairs of the shared space", 400)
    pairs = list(zip(plane.images, plane.texts, strict=True))
    axes.add_collection(LineCollection(pairs, colors=COLOURS["soft"], linewidths=0.6, alpha=0.45))
    for kind, points in (("image", plane.images), ("text", plane.texts)):
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, 16, linewidths=0, label=kind, **KINDS[kind])
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    first, second = (f"{share:.1%}" for share in plane.explained)
    axes.set_xlabel(f"first axis: {first} of the variance")
    axes.set_ylabel(f"second axis: {second} of the variance")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0)
    axes.set_title(axes.get_title(loc="left"), pad=24)
    return figure


def limits(
    values: Iterable[float], *, least: float = NARROWEST, floor: float = 0.0, ceiling: float = math.inf
) -> tuple[float, float]:
    """Return a range `(low, high)` around the values with a margin, at least `least` wide.

    >>> limits([0.5, 0.98], ceiling=1.0)
    (0.452, 1.0)
    >>> limits([1.0], ceiling=1.0), limits([0.0])
    ((0.95, 1.0), (0.0, 0.05))
    """
    known = list(values)
    low, high = min(known), max(known)
    margin = max((high - low) * 0.1, (least - (high - low)) / 2)
    high = min(ceiling, high + margin)
    low = max(floor, min(low - margin, high - least))
    return round(low, 9), round(max(high, low + least), 9)


def waterfall_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of a waterfall: between round numbers, from 0 if all values are the same.

    >>> waterfall_range([0.612, 0.612]), waterfall_range([0.612, 0.604, 0.59])
    ((0.0, 0.65), (0.55, 0.65))
    """
    low, high = limits(values or [0.0], ceiling=1.0)
    start = 0.0 if not values or max(values) - min(values) < SAME else math.floor(low / NARROWEST) * NARROWEST
    return round(start, 9), round(min(1.0, math.ceil(round(high / NARROWEST, 6)) * NARROWEST), 9)


def shortened(text: str, most: int) -> str:
    """Shorten a text to `most` characters, and escape bidirectional control characters.

    >>> shortened("a long name", 8)
    'a long …'
    """
    text = text.translate(BIDI_CONTROLS)
    return text if len(text) <= most else text[: most - 1] + "…"


def new_figure(label: str, height: float, width: float = WIDTH, **options: Any) -> tuple["Figure", Any]:
    """Make a figure of `width` x `height` points and its axes; `options` are those of `subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), label=label)
    return figure, figure.subplots(**options)


def _figure(title: str, height: float) -> tuple["Figure", "Axes"]:
    figure, axes = new_figure(title, height)
    axes.set_title(shortened(title, LONGEST_TITLE))
    return figure, axes


def _rows(title: str, names: Sequence[str]) -> tuple["Figure", "Axes"]:
    """Make axes with a row per name from the top, with room for numbers on the right."""
    figure, axes = _figure(title, 40 + ROW * max(2, len(names)))
    figure.subplots_adjust(left=0.3, right=0.68)
    axes.set_yticks(range(len(names)), [shortened(name, LONGEST_NAME) for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_gid(f"title:{name.translate(BIDI_CONTROLS)}")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=4)
    axes.set_title(axes.get_title(loc="left"), x=-0.6, pad=22)
    return figure, axes


def _column(axes: "Axes", x: float, heading: str, ha: str = "left") -> Any:
    """Write the heading of a column right of the axes; return a function that writes its cells."""
    axes.text(x, 1.02, heading, transform=axes.transAxes, va="bottom", ha=ha, color=COLOURS["soft"])

    def write(row: int, text: str, **style: Any) -> None:
        axes.text(x, row, text, transform=axes.get_yaxis_transform(), va="center", ha=ha, **style)

    return write


def _limit(axes: "Axes", values: Sequence[float], floor: float, ceiling: float) -> None:
    from matplotlib.ticker import EngFormatter

    low, high = limits(values, floor=floor, ceiling=ceiling)
    axes.set_ylim(low, high)
    axes.locator_params(axis="y", nbins=6)
    if high >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _values(drawn: Sequence[Line]) -> Iterable[float]:
    for line in drawn:
        yield from (*line.y, *line.low, *line.high)
