"""Charts: what is drawn stands where its value is, and a page can colour and read it."""

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.seen_unseen import SeenUnseenCurve
from connector.audits.history import AuditSummary
from connector.audits.result import PcaProjection
from connector.audits.stage_summary import StageSummary
from connector.provenance.tables import MeasureRow
from connector.reports.charts import (
    COLOURS,
    OUTCOMES,
    PAGE_COLOURS,
    Bar,
    Line,
    bars,
    lines,
    scatter,
    seen_unseen,
    svg,
    waterfall,
)
from connector.reports.compare_charts import MAP, ink
from connector.reports.trends import trend

K = 10
NAMES = {"svg": "http://www.w3.org/2000/svg"}


def texts(drawn: str) -> list[str]:
    return ["".join(text.itertext()).strip() for text in ET.fromstring(drawn).iterfind(".//svg:text", NAMES)]


def blocks(figure: Figure, gid: str) -> list[tuple[float, float]]:
    """Where the bars of a figure begin and end, as values."""
    found = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and str(p.get_gid()).startswith(gid)]
    return [tuple(sorted((bar.get_x(), bar.get_x() + bar.get_width()))) for bar in found]  # type: ignore[misc]


def along(figure: Figure) -> list[list[float]]:
    """The values of every line of a figure."""
    return [np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].lines]


def up(figure: Figure) -> list[list[float]]:
    """The same of the other axis."""
    return [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines]


def stage(name: str, against: str | None, recall: float, lost: Estimate | None = None) -> StageSummary:
    return StageSummary("text-to-image", name, against, 100, 0, {K: Estimate(recall, 0, 1)}, lost=lost)


class TestWaterfall:
    STAGES = (
        stage("reference", None, 0.60),
        stage("lowering", "reference", 0.40, Estimate(0.20, 0.15, 0.25)),
        stage("rescoring", "reference", 0.59, Estimate(0.01, -0.01, 0.03)),
        stage("index", "rescoring", 0.62, Estimate(-0.03, -0.04, -0.02)),
    )

    def test_blocks_reach_from_the_stage_before_to_the_stage(self) -> None:
        figure = waterfall("w", self.STAGES, K)
        reach = [pytest.approx(ends) for ends in ((0.40, 0.60), (0.59, 0.60), (0.59, 0.62))]
        assert blocks(figure, "loss") == reach
        for level in (0.60, 0.40, 0.59, 0.62):
            assert pytest.approx([level, level]) in along(figure)
        assert pytest.approx([0.35, 0.45]) in along(figure)

    def test_red_is_more_than_chance(self) -> None:
        figure = waterfall("w", self.STAGES, K)
        assert [p.get_gid() for p in figure.axes[0].patches] == ["loss-worse", "loss-same", "loss-better"]
        assert len(set(OUTCOMES.values())) == 3
        assert [text for text in texts(svg(figure)) if text[:1] in "+−" and text[1:]] == ["−0.200", "−0.010", "+0.030"]

    def test_what_was_not_measured_is_named(self) -> None:
        missing = StageSummary("text-to-image", "filter:a", "exact", why_not="refused")
        nothing = StageSummary("text-to-image", "filter:b", "exact", without_relevant=9)
        figure = waterfall("w", [missing, nothing], K)
        assert {"not measured", "nothing to find"} <= set(texts(svg(figure)))
        assert not figure.axes[0].lines

    def test_losses_that_are_nothing_do_not_fill_the_picture(self) -> None:
        small = [stage("reference", None, 0.5), stage("index", "reference", 0.499, Estimate(0.001, 0.0, 0.002))]
        low, high = waterfall("w", small, K).axes[0].get_xlim()
        assert high - low >= 0.05

    @pytest.mark.parametrize(
        ("level", "lost", "expected"),
        [
            (0.612, 0.0, (0.0, 0.65)),
            (0.612, 0.0002, (0.0, 0.65)),
            (0.612, 0.03, (0.55, 0.65)),
            (0.98, 0.02, (0.9, 1.0)),
        ],
    )
    def test_its_axis_starts_at_a_round_place_and_at_0_where_nothing_is_lost(
        self, level: float, lost: float, expected: tuple[float, float]
    ) -> None:
        change = Estimate(lost, lost, lost)
        stages = [stage("reference", None, level), stage("index", "reference", level - lost, change)]
        figure = waterfall("w", stages, K)
        assert figure.axes[0].get_xlim() == pytest.approx(expected)
        assert ("nothing lost" in texts(svg(figure))) == (lost < 0.0005)


def test_bars_begin_at_0() -> None:
    figure = bars("b", "text", [Bar("a", 0.5, 0.25, 0.75, 1200), Bar("b", 0.25, None, None, 3)])
    assert blocks(figure, "bar") == [(0, 0.5), (0, 0.25)]
    assert along(figure) == [[0.25, 0.75]]
    assert figure.axes[0].get_xlim() == (0, 0.75)
    assert {"0.500", "0.250", "1,200", "3"} <= set(texts(svg(figure)))


def test_lines_stand_where_their_values_are() -> None:
    chance = Line("chance", "b", [1, 10], [0.1, 0.2])
    drawn = [Line("text", "a", [1, 10], [0.2, 0.8], [0.1, 0.7], [0.3, 0.9]), chance]
    figure = lines("l", drawn, x_ticks=[(1, "1"), (10, "10")], x_title="x", band=True, ceiling=0.95)
    assert along(figure) == [[1, 10], [1, 10]]
    assert up(figure) == [[0.2, 0.8], [0.1, 0.2]]
    (band,) = figure.axes[0].collections
    ((low, high),) = ([box.y0, box.y1] for box in [band.get_datalim(figure.axes[0].transData)])
    assert (low, high) == pytest.approx((0.1, 0.9))
    assert figure.axes[0].get_ylim()[1] <= 0.95


def test_the_plane_has_one_scale_two_shapes_and_a_line_for_each_pair() -> None:
    figure = scatter(PcaProjection(["a", "b"], [(0.0, 0.0), (2.0, 0.0)], [(0.0, 1.0), (2.0, 1.0)], (0.4, 0.125)))
    axes = figure.axes[0]
    assert axes.get_aspect() == 1
    pairs, images, captions = axes.collections
    assert [segment.tolist() for segment in pairs.get_segments()] == [[[0, 0], [0, 1]], [[2, 0], [2, 1]]]  # type: ignore[attr-defined]
    assert images.get_offsets().tolist() == [[0, 0], [2, 0]]  # type: ignore[union-attr]
    assert captions.get_offsets().tolist() == [[0, 1], [2, 1]]  # type: ignore[union-attr]
    assert {"first axis: 40.0% of the variance", "second axis: 12.5% of the variance"} <= set(texts(svg(figure)))


def test_a_picture_takes_its_colours_from_the_page() -> None:
    drawn = svg(bars("b", "image", [Bar("a", 0.5, 0.25, 0.75, 3)]))
    assert f"var(--image, {PAGE_COLOURS['image']})" in drawn
    assert not [colour for colour in COLOURS.values() if colour in drawn]
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) <= set(PAGE_COLOURS.values())


def test_names_that_mean_harm_stay_text() -> None:
    name = '<b>"$x^2$&\u202e'
    drawn = svg(bars(name, "text", [Bar(name, 0.5, None, None, 3)]))
    assert ET.fromstring(drawn).attrib["aria-label"] == name.replace("\u202e", "\\u202e")
    assert sum(text.startswith('<b>"$x^2$&') for text in texts(drawn)) == 2


def test_text_on_every_colour_can_be_read() -> None:
    def luminance(colour: Any) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
        return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])

    for share in range(101):
        light = luminance(mpl.colormaps[MAP](share / 100))
        contrast = 1.05 / (light + 0.05) if ink(mpl.colormaps[MAP](share / 100)) == "#ffffff" else (light + 0.05) / 0.05
        assert contrast >= 4.5


def moment(number: int, release: str, *measures: MeasureRow) -> AuditSummary:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)
    return AuditSummary(number, release, "cosine", "measured" if measures else "broken", at, "pairs", measures)


def measure(direction: str, name: str, value: float, queries: int = 100) -> MeasureRow:
    return MeasureRow(direction=direction, name=name, value=value, low=value - 0.1, high=value + 0.1, queries=queries)


class TestTrend:
    MOMENTS = (
        moment(1, "a", measure("text-to-image", "recall@10", 0.5), measure("both", "gap", 0.9, 50)),
        moment(2, "a", measure("text-to-image", "recall@10", 0.6), measure("both", "gap", 0.4)),
        moment(3, "b"),
        moment(4, "b", measure("text-to-image", "recall@10", float("inf")), measure("both", "gap", 0.3)),
    )

    @pytest.fixture
    def drawn(self, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
        """The figures behind the markup."""
        figures: list[Figure] = []

        def remember(figure: Figure) -> str:
            figures.append(figure)
            return svg(figure)

        monkeypatch.setattr("connector.reports.trends.svg", remember)
        return figures

    def test_what_is_no_number_and_what_is_broken(self, drawn: list[Figure]) -> None:
        shown = texts(trend(self.MOMENTS, "recall@10") or "")
        assert "audits of 2026-01-02 to 2026-01-05" in shown
        assert up(drawn[0])[0] == [0.5, 0.6], "two audits have a finite recall"
        _, rule, cross = along(drawn[0])
        assert (rule[0], cross) == (1.5, [2])
        assert trend(self.MOMENTS, "mrr") is None

    def test_a_gap_is_not_drawn_without_its_recall(self, drawn: list[Figure]) -> None:
        assert trend(self.MOMENTS, "gap", beside="recall@5") is None
        trend((*self.MOMENTS[:3], moment(5, "b", measure("both", "gap", 0.3))), "gap", beside="recall@10")
        assert up(drawn[0])[0] == [0.4]

    def test_a_long_title_is_cut_and_keeps_the_name_of_the_measure(self) -> None:
        part = f"filter:{'long' * 30}"
        one = MeasureRow(direction="both", stratum=part, name="recall@10", value=0.5, queries=9)
        picture = trend([moment(1, "a", one), moment(2, "a", one)], "recall@10", part) or ""
        (title,) = [text for text in texts(picture) if text.startswith("Recall@10, filter:long")]
        assert len(title) < 80
        assert ET.fromstring(picture).attrib["aria-label"].endswith("long, 9 groups")

    def test_gaps_of_other_samples_are_left_out(self, drawn: list[Figure]) -> None:
        assert "gap, 100 groups" in texts(trend(self.MOMENTS, "gap") or "")
        assert up(drawn[0])[0] == [0.4, 0.3]


class TestSeenUnseen:
    X = np.linspace(0.05, 0.7, 60)
    CURVE = SeenUnseenCurve(K, np.linspace(-1, 1, 60), X, 0.95 * np.sqrt(1 - (X / 0.71) ** 2))
    OTHER = SeenUnseenCurve(K, np.linspace(-1, 1, 60), X / 2, np.linspace(0.9, 0.0, 60))

    def marked(self, *places: int) -> list[tuple[str, float, float]]:
        names = ("without offset", "chosen")
        drawn = self.CURVE
        return [(name, float(drawn.unseen[i]), float(drawn.seen[i])) for name, i in zip(names, places, strict=True)]

    def test_the_curves_and_both_points_stand_at_their_recalls(self) -> None:
        marked = self.marked(30, 40)
        figure = seen_unseen("t", "text", self.CURVE, marked, [self.OTHER])
        other, curve, *points = zip(along(figure), up(figure), strict=True)
        assert other == (self.OTHER.unseen.tolist(), self.OTHER.seen.tolist())
        assert curve == (self.CURVE.unseen.tolist(), self.CURVE.seen.tolist())
        assert points == [([x], [y]) for _, x, y in marked]
        assert {"without offset", "chosen", "Recall@10 of new items", "Recall@10 of known items"} < set(
            texts(svg(figure))
        )

    @pytest.mark.parametrize("places", [(0, 1), (5, 9), (20, 20), (40, 41), (55, 57), (58, 59), (30, 12)])
    def test_names_of_close_points_never_lie_on_each_other(self, places: tuple[int, int]) -> None:
        figure = seen_unseen("t", "text", self.CURVE, self.marked(*places))
        figure.draw_without_rendering()
        one, other = (name.get_window_extent() for name in figure.axes[0].texts)
        assert not one.overlaps(other)
