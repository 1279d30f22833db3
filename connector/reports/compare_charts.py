"""Charts of a comparison: its table as a heat map, the learning curves, and the seen-unseen curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignment.comparison.guidelines import Advice
from alignment.comparison.learning_curve import CurvePoint, Forecast
from alignment.comparison.table import Comparison, Fitted
from alignment.fitting.seen_unseen import WholeRecall
from alignment.modality import DIRECTIONS
from alignment.plurals import counted
from alignment.retrieval.cutoffs import RECALL
from connector.reports.charts import COLOURS, NARROWEST, limits, new_figure, seen_unseen, shortened, styled, svg
from connector.reports.glossary import ARROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

CELL, ROW, HEADER, MARGIN = 84, 40, 46, 80  # points
LONGEST_PAIR = 70  # characters
MAP = "viridis"  # perceptually uniform, and safe for colour blindness
CURVES = ("text", "image", "both", "good", "bad")


@styled
def heat_map(comparison: Comparison, advice: Advice) -> str:
    """Return an SVG of harmonic Recall@10 by encoder pair and method (rows) and metric (columns).

    Empty frames were not run, or not in the whole collection.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = [row.whole.judged.value for fitted in comparison.fitted for row in fitted.rows if row.whole]
    low, high = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
    norm = Normalize(low, max(high, low + NARROWEST))
    tables = [(pair.name, list(comparison.by_pair(pair.name))) for pair in comparison.pairs]
    title = (
        "Harmonic mean of the Recall@10 of new and known items by method and metric: mean of both directions on "
        f"{counted(comparison.test_groups, 'held-out group')}, with 95% intervals"
    )
    figure, grid = new_figure(
        title,
        sum(HEADER + ROW * len(methods) for _, methods in tables) + MARGIN,
        MARGIN + CELL * len(comparison.metrics),
        nrows=len(tables),
        squeeze=False,
        sharex=True,
        height_ratios=[len(methods) for _, methods in tables],
        gridspec_kw={"hspace": HEADER / ROW},
    )
    for axes, (name, methods) in zip(grid[:, 0], tables, strict=True):
        axes.set_title(shortened(name, LONGEST_PAIR), pad=22)
        axes.set_yticks(range(len(methods)), [fitted.method for fitted in methods])
        axes.set_xticks(range(len(comparison.metrics)), short_names(comparison.metrics))
        axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
        axes.set(xlim=(-0.5, len(comparison.metrics) - 0.5), ylim=(len(methods) - 0.5, -0.5))
        axes.spines[:].set_visible(False)
        for y, fitted in enumerate(methods):
            chosen = advice.metric if (advice.pair, advice.method) == (fitted.pair, fitted.method) else None
            _cells(axes, y, fitted, comparison.metrics, norm, chosen)
    bar = figure.colorbar(ScalarMappable(norm, MAP), ax=grid, orientation="horizontal", fraction=0.04, pad=0.05)
    bar.outline.set_visible(False)
    return svg(figure, "chart heat")


def _cells(axes: "Axes", y: int, fitted: Fitted, metrics: Sequence[str], norm: "Normalize", chosen: str | None) -> None:
    import matplotlib as mpl
    from matplotlib.patches import Rectangle

    for x, metric in enumerate(metrics):
        row = fitted.row(metric)
        judged = row.whole.judged if row and row.whole else None
        colour = mpl.colormaps[MAP](float(norm(judged.value))) if judged else (0.0, 0.0, 0.0, 0.0)
        edge = (
            {"edgecolor": COLOURS["ink"], "linewidth": 2.5}
            if judged and metric == chosen
            else {"edgecolor": COLOURS["line"]}
        )
        axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=colour, **edge))
        if judged:
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": ink(colour)}
            axes.text(x, y - 0.16, f"{judged.value:.3f}", weight="bold", **style)
            axes.text(x, y + 0.2, f"{judged.low:.3f} to {judged.high:.3f}", size=8, **style)
        else:
            axes.text(x, y, "not measured" if row else "not run", ha="center", va="center", color=COLOURS["soft"])


@styled
def learning_curves(comparison: Comparison) -> str | None:
    """Return an SVG of Recall@10 of new items by training groups, with dashed forecasts; None without a curve."""
    from matplotlib.transforms import offset_copy

    curves = comparison.curves
    if not curves:
        return None
    chance = next(pair.whole_chance[RECALL] for pair in comparison.pairs if pair.name == curves[0].pair)
    figure, axes = new_figure("Recall@10 of new items by number of training groups", 260, 520)
    axes.set_title(shortened(curves[0].pair, LONGEST_PAIR))
    sizes: set[int] = set()
    tops = [chance]
    for number, curve in enumerate(curves):
        colour = COLOURS[CURVES[number % len(CURVES)]]
        aside = offset_copy(axes.transData, figure, x=4 * number, units="points")
        points: list[CurvePoint | Forecast] = [*curve.points, *([curve.forecast] if curve.forecast else [])]
        x, y = [point.groups for point in points], [point.recall.value for point in points]
        measured = len(curve.points)
        axes.plot(x[:measured], y[:measured], "o-", color=colour, label=curve.method, transform=aside)
        axes.plot(x[measured - 1 :], y[measured - 1 :], "--", color=colour, transform=aside)
        lows, highs = [point.recall.low for point in points], [point.recall.high for point in points]
        axes.vlines(x, lows, highs, color=colour, linewidth=1.2, transform=aside)
        sizes |= set(x)
        tops += highs
    axes.axhline(chance, color=COLOURS["soft"], linestyle="--", linewidth=1.2, label="chance")
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set_xticks(sorted(sizes), [f"{size:,}" for size in sorted(sizes)])
    axes.set_xlim(0.85 * min(sizes), 1.2 * max(sizes))
    axes.set_ylim(0, limits(tops, ceiling=1.0)[1])
    axes.set_xlabel("training groups; dashed: forecast")
    axes.grid(axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return svg(figure)


@dataclass(frozen=True, slots=True)
class SeenUnseenPicture:
    """The seen-unseen curve of one direction, and what it says in words."""

    svg: str
    caption: str


def seen_unseen_curves(comparison: Comparison, advice: Advice) -> dict[str, SeenUnseenPicture]:
    """Draw by direction what an offset trades after the advised method, under the reference; others thin beside it."""
    fits = comparison.by_pair(advice.pair)
    (advised,) = (fitted for fitted in fits if fitted.method == advice.method)
    pictures = {}
    for direction, drawn in advised.whole.curves.items():
        recall = advised.whole.recalls[direction]
        has_offset = recall.offsets[1] > 0
        names = ["without offset", "chosen"] if has_offset else ["chosen: no offset"]
        places = range(2) if has_offset else range(1)
        marked = [
            (name, float(recall.unseen[place, -1]), float(recall.seen[place, -1]))
            for name, place in zip(names, places, strict=True)
        ]
        others = [fitted.whole.curves[direction] for fitted in fits if fitted is not advised]
        figure = seen_unseen(ARROWS[direction], DIRECTIONS[direction][0], drawn, marked, others)
        areas = sorted(((fitted.whole.curves[direction].area, fitted.method) for fitted in fits), reverse=True)
        pictures[direction] = SeenUnseenPicture(svg(figure), _caption(recall, areas))
    return pictures


def _caption(recall: WholeRecall, areas: Sequence[tuple[float, str]]) -> str:
    """Say where the points stand, and how large the area under every curve is."""
    first, among = (
        [[f"{values[place, column]:.0%}" for place in range(2)] for values in (recall.unseen, recall.seen)]
        for column in (0, -1)
    )
    if recall.offsets[1] > 0:
        said = f"New items are found first in {first[0][1]} of searches instead of {first[0][0]}; known ones in "
        said += f"{first[1][1]} instead of {first[1][0]}. Among the first 10, new ones in {among[0][1]} instead of "
        said += f"{among[0][0]}, known ones in {among[1][1]} instead of {among[1][0]}."
    else:
        said = f"New items are found first in {first[0][0]} of searches, known ones in {first[1][0]}; among the first "
        said += f"10, new ones in {among[0][0]}, known ones in {among[1][0]}. There is no offset."
    listed = ", ".join(f"{method} {area:.3f}" for area, method in areas)
    return f"{said} Area under the curve (AUSUC): {listed}."


def short_names(metrics: Sequence[str]) -> list[str]:
    """Return metrics without their parameters where the names stay unique.

    >>> short_names(["cosine", "chi2(map=split)", "mol(a=1)", "mol(a=2)"])
    ['cosine', 'chi2', 'mol(a=1)', 'mol(a=2)']
    """
    plain = [metric.partition("(")[0] for metric in metrics]
    return [name if plain.count(name) == 1 else metric for name, metric in zip(plain, metrics, strict=True)]


def ink(background: Sequence[float]) -> str:
    """Return black or white, whichever has more contrast on a colour (red, green, blue from 0 to 1) by WCAG 2.

    >>> ink((0.27, 0.0, 0.33)), ink((0.99, 0.91, 0.14))
    ('#ffffff', '#000000')
    """
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in background[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"
