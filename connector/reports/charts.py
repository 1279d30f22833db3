"""Pictures of audits as SVG that a page colours by class. Positions are pixels of a frame that the page scales."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from connector.audits.result import PcaProjection, StageFound
from connector.reports.glossary import kind_of, signed
from connector.reports.pages import templates

# As wide as a phone is, so that its letters are still read there.
WIDTH = 440
LEFT, RIGHT, TOP, HEIGHT = 44, 428, 44, 180
# Rows of a name, a bar and its numbers.
NAME, BAR_RIGHT, ROW = 118, 304, 30
NARROWEST = 0.05
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A value at a place from 0 to 1 along a line, with its interval where it has one, and what it is in words."""

    place: float
    value: float
    low: float | None = None
    high: float | None = None
    says: str


@dataclass(frozen=True, slots=True)
class Line:
    """What is drawn in one colour and shape: that of `text`, `image`, `both` or `chance`."""

    kind: str
    label: str
    marks: Sequence[Mark]


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval, what it is of, and how many queries it was measured on."""

    name: str
    value: float
    low: float | None
    high: float | None
    queries: int


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + (self.end - self.start) * min(max(share, 0.0), 1.0), 1)

    def ticks(self, most: int = 5) -> list[dict[str, Any]]:
        """Round values along it."""
        return [{"at": self(value), "label": label} for value, label in round_values(self.low, self.high, most)]


def round_values(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """At most `most` steps of round values between two, with their labels.

    >>> [label for _, label in round_values(0.0, 1.0, 5)]
    ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0']
    >>> [label for _, label in round_values(0.512, 0.561, 5)]
    ['0.52', '0.53', '0.54', '0.55', '0.56']
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * each for each in STEPS if power * each * most >= (high - low) * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (round(step / power, 3) == 2.5 and power <= 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(number * step, _label(number * step, digits)) for number in range(first, last + 1)]


def _label(value: float, digits: int) -> str:
    """Round values that are long end in k or M.

    >>> _label(0.25, 2), _label(2500.0, 0), _label(25_000.0, 0), _label(1_500_000.0, 0)
    ('0.25', '2500', '25k', '1.5M')
    """
    if abs(value) < 10_000:
        return f"{value:.{digits}f}"
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"


def spread(
    values: Iterable[float], *, least: float = NARROWEST, floor: float = 0.0, ceiling: float = math.inf
) -> tuple[float, float]:
    """Return a range `(low, high)` that holds the values with a margin, not narrower than `least`.

    >>> spread([0.5, 0.98], ceiling=1.0)
    (0.452, 1.0)
    >>> spread([1.0], ceiling=1.0), spread([0.0])
    ((0.95, 1.0), (0.0, 0.05))
    """
    found = list(values)
    low, high = min(found), max(found)
    margin = max((high - low) * 0.1, (least - (high - low)) / 2)
    high = min(ceiling, high + margin)
    low = max(floor, min(low - margin, high - least))
    return round(low, 9), round(max(high, low + least), 9)


def lines(
    title: str,
    drawn: Sequence[Line],
    *,
    y: tuple[float, float],
    x_ticks: Sequence[tuple[float, str]],
    x_title: str,
    band: bool = False,
    rules: Sequence[float] = (),
    crosses: Sequence[float] = (),
) -> str:
    """Values along something, with their intervals.

    Args:
        title: what the values are.
        drawn: each with a shape of its own; `chance` has none.
        y: range of the values.
        x_ticks: places from 0 to 1 with their labels.
        x_title: what they are.
        band: draw intervals as an area, else as a bar each.
        rules: places where something changed.
        crosses: places where nothing could be measured.
    """
    bottom = TOP + HEIGHT
    across, up = Axis(0, 1, LEFT + 12, RIGHT - 12), Axis(*y, bottom, TOP + 8)
    series = []
    for number, line in enumerate(drawn):
        aside = 0 if band else 6 * number  # so that bars do not hide each other
        marks = [
            {
                "x": round(across(m.place) + aside, 1),
                "y": up(m.value),
                "low": None if m.low is None else up(m.low),
                "high": None if m.high is None else up(m.high),
                "says": m.says,
            }
            for m in line.marks
        ]
        series.append({"kind": line.kind, "label": line.label, "marks": marks})
    return _drawn(
        "lines.svg",
        title=title,
        width=WIDTH,
        height=bottom + 44,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=bottom,
        series=series,
        band=band,
        y_ticks=up.ticks(),
        x_title=x_title,
        x_ticks=[{"at": across(place), "label": label} for place, label in x_ticks],
        rules=[across(place) for place in rules],
        crosses=[across(place) for place in crosses],
    )


def waterfall(title: str, stages: Sequence[StageFound], k: int) -> str:
    """Recall@`k` from stage to stage of one direction, each against the one that it names."""
    levels = [s.recall[k].value for s in stages if s.recall]
    befores = [s.recall[k].value + s.lost.value for s in stages if s.recall and s.lost]
    ends = [s.recall[k].value + s.lost.value - end for s in stages if s.recall and s.lost for end in _ends(s)]
    axis = Axis(*spread([*levels, *befores, *ends] or [0.0], ceiling=1.0), NAME + 6, BAR_RIGHT)
    rows: list[dict[str, Any]] = []
    places: dict[str, tuple[float, float]] = {}
    for stage in stages:
        y = TOP + ROW * (len(rows) + 0.5)
        row: dict[str, Any] = {"name": shortened(stage.name, NAME + 24), "full": stage.name, "y": y, "why_not": None}
        rows.append(row)
        if not stage.recall:
            row["why_not"] = "not measured" if stage.why_not else "nothing to find"
            continue
        level = stage.recall[k].value
        row |= {"level": axis(level), "value": level, "change": None, "from": None, "since": None}
        if stage.lost:
            before = level + stage.lost.value
            low, high = sorted(before - end for end in _ends(stage))
            row |= {"from": axis(before), "low": axis(low), "high": axis(high), "kind": kind_of(stage.lost)}
            row |= {"change": signed(-stage.lost.value), "since": places.get(stage.against or "")}
        places[stage.name] = (axis(level), y)
    bottom = TOP + ROW * len(rows)
    return _drawn(
        "waterfall.svg",
        title=title,
        width=WIDTH,
        height=bottom + 30,
        name=NAME,
        bottom=bottom,
        top=TOP - 6,
        rows=rows,
        ticks=axis.ticks(4),
        right=BAR_RIGHT,
        k=k,
    )


def _ends(stage: StageFound) -> tuple[float, float]:
    assert stage.lost is not None
    return stage.lost.low, stage.lost.high


def bars(title: str, kind: str, drawn: Sequence[Bar]) -> str:
    """A bar a value, from 0, with its interval."""
    axis = Axis(0.0, max(0.1, *(bar.value if bar.high is None else bar.high for bar in drawn)), NAME + 6, BAR_RIGHT)
    rows = [
        {
            "name": shortened(bar.name, NAME + 24),
            "full": bar.name,
            "y": TOP + ROW * (number + 0.5),
            "end": axis(bar.value),
            "bar": bar,
            "low": None if bar.low is None else axis(bar.low),
            "high": None if bar.high is None else axis(bar.high),
        }
        for number, bar in enumerate(drawn)
    ]
    return _drawn(
        "bars.svg",
        title=title,
        kind=kind,
        width=WIDTH,
        height=TOP + ROW * len(rows) + 30,
        name=NAME,
        start=NAME + 6,
        bottom=TOP + ROW * len(rows),
        top=TOP - 6,
        rows=rows,
        ticks=axis.ticks(4),
        right=BAR_RIGHT,
    )


def scatter(plane: PcaProjection) -> str:
    """Images and texts of the shared space, each pair joined."""
    xs, ys = zip(*plane.images, *plane.texts, strict=True)
    # One scale for both axes: distances along them compare.
    half = max(max(xs) - min(xs), max(ys) - min(ys)) / 2 or 1.0
    x0, y0 = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    side = (RIGHT - LEFT) / 2 - 8
    bottom = TOP + 2 * side + 16
    middle = ((LEFT + RIGHT) / 2, TOP + side + 8)

    def placed(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return round(middle[0] + side * (x - x0) / half, 1), round(middle[1] - side * (y - y0) / half, 1)

    pairs = [(placed(image), placed(text)) for image, text in zip(plane.images, plane.texts, strict=True)]
    first, second = (f"{share:.1%}" for share in plane.explained)
    return _drawn(
        "scatter.svg",
        title=f"{len(pairs)} pairs of the shared space",
        width=WIDTH,
        height=bottom + 32,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=bottom,
        pairs=pairs,
        first=first,
        second=second,
    )


def _drawn(template: str, **values: Any) -> str:
    title = values.pop("title")
    return templates().get_template(template).render(**values, title=title, shown=shortened(title, 1.1 * WIDTH))


CHARACTER = 7.2  # width of one at 13 pixels, about


def shortened(text: str, width: float) -> str:
    """Cut a text that is wider than so many pixels."""
    most = int(width / CHARACTER) - 4
    return text if len(text) <= most else text[: most - 1] + "…"
