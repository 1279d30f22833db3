"""Pictures of a comparison as SVG: the table as a heat map, and the learning curves. Positions are pixels."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from alignment.comparison.guidelines import Advice
from alignment.comparison.learning_curve import Curve, Forecast, Point
from alignment.comparison.table import Comparison, Fitted
from connector.reports.charts import CHARACTER, shortened
from connector.reports.pages import templates

# Viridis (Smith and van der Walt 2015), which is perceptually uniform and keeps its order for the colour-blind.
VIRIDIS = (
    "#440154",
    "#482475",
    "#414487",
    "#355f8d",
    "#2a788e",
    "#21918c",
    "#22a884",
    "#44bf70",
    "#7ad151",
    "#bddf26",
    "#fde725",
)
LEFT, ROW, CELL, HEADER = 128, 44, 92, 30
NARROWEST = 560
PLOT_LEFT, PLOT_TOP, PLOT_WIDTH, PLOT_HEIGHT = 64, 76, 520, 260
LINE = 16


def heat_map(comparison: Comparison, advice: Advice) -> str:
    """Rows are encoder pairs and methods, columns metrics, cells Recall@10; what was not run is an empty frame."""
    names = short_names(comparison.metrics)
    cell_width = max(CELL, *(math.ceil(CHARACTER * len(name)) + 16 for name in names))
    width = max(NARROWEST, LEFT + cell_width * len(names) + 16)
    found = [row.recall.value for fitted in comparison.fitted for row in fitted.rows]
    low, high = math.floor(20 * min(found)) / 20, math.ceil(20 * max(found)) / 20
    high = max(high, low + 0.05)
    groups, y = [], 92
    for pair in comparison.pairs:
        group: dict[str, Any] = {"name": pair.name, "label": shortened(pair.name, width), "y": y + 18, "rows": []}
        y += HEADER
        for fitted in comparison.by_pair(pair.name):
            taken = advice.metric if (advice.pair, advice.method) == (fitted.pair, fitted.method) else None
            cells = _cells(fitted, comparison.metrics, cell_width, low, high, taken)
            group["rows"].append({"label": fitted.method, "y": y, "cells": cells})
            y += ROW
        groups.append(group)
    return (
        templates()
        .get_template("heatmap.svg")
        .render(
            title="Recall@10 by method and metric",
            subtitle=f"mean of both directions on {comparison.test_groups:,} held-out groups, with 95% intervals",
            width=width,
            height=y + 52,
            left=LEFT,
            cell_width=cell_width,
            row_height=ROW,
            columns_y=80,
            groups=groups,
            columns=[
                {"x": LEFT + cell_width * (number + 0.5) - 2, "label": label, "name": name}
                for number, (label, name) in enumerate(zip(names, comparison.metrics, strict=True))
            ],
            scale={"colours": VIRIDIS, "low": low, "high": high, "y": y + 14},
        )
    )


def _cells(
    fitted: Fitted, metrics: Sequence[str], width: int, low: float, high: float, taken: str | None
) -> list[dict[str, Any]]:
    cells = []
    for number, metric in enumerate(metrics):
        cell: dict[str, Any] = {"x": LEFT + width * number, "value": None}
        if row := fitted.row(metric):
            background = colour((row.recall.value - low) / (high - low))
            cell |= {
                "value": row.recall.value,
                "low": row.recall.low,
                "high": row.recall.high,
                "colour": background,
                "ink": ink(background),
                "taken": metric == taken,
            }
        cells.append(cell)
    return cells


def learning_curves(comparison: Comparison) -> str | None:
    """Recall@10 over the groups to fit on, with intervals; what is forecast is dashed. None without a curve."""
    curves = comparison.curves
    if not curves:
        return None
    chance = next(pair.chance["recall@10"] for pair in comparison.pairs if pair.name == curves[0].pair)
    sizes = sorted({point.groups for curve in curves for point in curve.points})
    sizes += sorted({curve.forecast.groups for curve in curves if curve.forecast})
    tops = [point.recall.high for curve in curves for point in curve.points]
    tops += [curve.forecast.recall.high for curve in curves if curve.forecast]
    top = math.ceil(10 * max(*tops, chance)) / 10
    bottom = PLOT_TOP + PLOT_HEIGHT
    span = math.log2(sizes[-1] / sizes[0]) or 1.0

    def x(groups: int) -> float:
        return round(PLOT_LEFT + 24 + (PLOT_WIDTH - 48) * math.log2(groups / sizes[0]) / span, 1)

    def y(recall: float) -> float:
        return round(bottom - PLOT_HEIGHT * recall / top, 1)

    series = [_series(curve, number, x, y) for number, curve in enumerate(curves)]
    _spread_labels(series)
    widest = max(len(each["label"]) for each in series)
    step = 0.1 if top <= 0.6 else 0.2
    ticks = [round(step * number, 1) for number in range(int(top / step + 1e-9) + 1)]
    return (
        templates()
        .get_template("learning_curves.svg")
        .render(
            title="Recall@10 with fewer groups to fit on",
            subtitle=shortened(curves[0].pair, PLOT_LEFT + PLOT_WIDTH),
            width=math.ceil(PLOT_LEFT + PLOT_WIDTH + 24 + CHARACTER * max(widest, 7)),
            height=bottom + 60,
            left=PLOT_LEFT,
            right=PLOT_LEFT + PLOT_WIDTH,
            bottom=bottom,
            curves=series,
            chance={"y": y(chance)},
            y_ticks=[{"y": y(tick), "label": f"{tick:.1f}"} for tick in ticks],
            x_ticks=[{"x": x(size), "label": f"{size:,}"} for size in sizes],
        )
    )


def _series(curve: Curve, number: int, x: Any, y: Any) -> dict[str, Any]:
    def placed(point: Point | Forecast) -> dict[str, Any]:
        recall = point.recall
        aside = round(x(point.groups) + 6 * number, 1)  # so that bars do not hide each other
        title = f"{point.groups:,} groups: {recall}"
        return {"x": aside, "y": y(recall.value), "low": y(recall.low), "high": y(recall.high), "title": title}

    points = [placed(point) for point in curve.points]
    forecast = placed(curve.forecast) if curve.forecast else None
    label_y = (forecast or points[-1])["y"]
    return {"number": number, "label": curve.method, "points": points, "forecast": forecast, "label_y": label_y}


def _spread_labels(series: Sequence[dict[str, Any]]) -> None:
    """Move labels apart that would stand on each other."""
    ordered = sorted(series, key=lambda each: float(each["label_y"]))
    for above, below in pairwise(ordered):
        below["label_y"] = max(below["label_y"], above["label_y"] + LINE)


def short_names(metrics: Sequence[str]) -> list[str]:
    """Metrics without their parameters, where that is enough to tell them apart.

    >>> short_names(["cosine", "chi2(map=split)", "mol(a=1)", "mol(a=2)"])
    ['cosine', 'chi2', 'mol(a=1)', 'mol(a=2)']
    """
    plain = [metric.partition("(")[0] for metric in metrics]
    return [name if plain.count(name) == 1 else metric for name, metric in zip(plain, metrics, strict=True)]


def colour(share: float) -> str:
    """The colour of a share from 0 to 1.

    >>> colour(0.0), colour(0.55), colour(1.0)
    ('#440154', '#229c88', '#fde725')
    """
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    below = min(int(place), len(VIRIDIS) - 2)
    mixed = (
        round(a + (b - a) * (place - below))
        for a, b in zip(_rgb(VIRIDIS[below]), _rgb(VIRIDIS[below + 1]), strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def ink(background: str) -> str:
    """Whether light or dark text has more contrast on a colour; one of them always has 4.5 (WCAG 2).

    >>> ink("#440154"), ink("#fde725")
    ('light', 'dark')
    """
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in _rgb(background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "light" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "dark"


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
