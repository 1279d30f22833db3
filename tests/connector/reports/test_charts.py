"""Pictures of audits: what is drawn stands where its value is."""

import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from alignment.retrieval.bootstrap import Estimate
from connector.audits.history import AuditSummary
from connector.audits.result import PcaProjection, StageFound
from connector.provenance.tables import MeasureRow
from connector.reports.charts import Bar, Line, Mark, bars, lines, scatter, waterfall
from connector.reports.trends import trend

K = 10


def drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in svg.iter() if name in element.get("class", "").split()]


def texts(svg: ET.Element) -> list[str]:
    return ["".join(text.itertext()).strip() for text in svg.iter("text")]


def axis(svg: ET.Element, begins: str, *, across: bool) -> Any:
    """Where a value stands, from the first and the last tick of a picture."""
    lines_ = [element.attrib["d"] for element in of_class(svg, "grid") if begins in element.attrib["d"]]
    places = [float(line[1:].split(begins)[0].split()[0 if across else 1]) for line in lines_]
    labels = [text for text in svg.iter("text") if text.get("text-anchor") == ("middle" if across else "end")]
    values = [float(text.text or "") for text in labels if (text.text or "").replace(".", "").isdigit()][: len(places)]
    scale = (places[-1] - places[0]) / (values[-1] - values[0])
    return lambda value: places[0] + scale * (value - values[0])


def stage(name: str, against: str | None, recall: float, lost: Estimate | None = None) -> StageFound:
    return StageFound("text-to-image", name, against, 100, 0, {K: Estimate(recall, 0, 1)}, lost=lost)


class TestWaterfall:
    STAGES = (
        stage("reference", None, 0.60),
        stage("lowering", "reference", 0.40, Estimate(0.20, 0.15, 0.25)),
        stage("rescoring", "reference", 0.59, Estimate(0.01, -0.01, 0.03)),
        stage("index", "rescoring", 0.62, Estimate(-0.03, -0.04, -0.02)),
    )

    def test_blocks_reach_from_the_stage_before_to_the_stage(self) -> None:
        svg = drawn(waterfall("w", self.STAGES, K))
        x = axis(svg, "V", across=True)
        blocks = of_class(svg, "loss")
        for block, (high, low) in zip(blocks, [(0.60, 0.40), (0.60, 0.59), (0.62, 0.59)], strict=True):
            start, width = float(block.attrib["x"]), float(block.attrib["width"])
            assert (start, start + width) == pytest.approx((x(low), x(high)), abs=0.2)
        whiskers = [element.attrib["d"] for element in of_class(svg, "whisker")]
        start_of_it, _, end_of_it = whiskers[0][1:].partition("H")
        assert (float(start_of_it.split()[0]), float(end_of_it)) == pytest.approx((x(0.35), x(0.45)), abs=0.2)
        levels = [float(element.attrib["d"][1:].split()[0]) for element in of_class(svg, "level")]
        assert levels == pytest.approx([x(0.60), x(0.40), x(0.59), x(0.62)], abs=0.2)

    def test_red_is_more_than_chance(self) -> None:
        svg = drawn(waterfall("w", self.STAGES, K))
        assert [block.attrib["class"] for block in of_class(svg, "loss")] == ["loss worse", "loss same", "loss better"]
        assert [text for text in texts(svg) if text[0] in "+−"] == ["−0.200", "−0.010", "+0.030"]

    def test_what_was_not_measured_is_named(self) -> None:
        missing = StageFound("text-to-image", "filter:a", "exact", why_not="refused")
        nothing = StageFound("text-to-image", "filter:b", "exact", without_relevant=9)
        svg = drawn(waterfall("w", [missing, nothing], K))
        assert "not measured" in texts(svg)
        assert "nothing to find" in texts(svg)
        assert not of_class(svg, "level")

    def test_losses_that_are_nothing_do_not_fill_the_picture(self) -> None:
        small = [stage("reference", None, 0.5), stage("index", "reference", 0.499, Estimate(0.001, 0.0, 0.002))]
        (block,) = of_class(drawn(waterfall("w", small, K)), "loss")
        assert 0 < float(block.attrib["width"]) < 10


def test_bars_begin_at_0() -> None:
    svg = drawn(bars("b", "text", [Bar("a", 0.5, 0.25, 0.75, 1200), Bar("b", 0.25, None, None, 3)]))
    first, second = (float(element.attrib["width"]) for element in of_class(svg, "bar"))
    assert first == pytest.approx(2 * second, abs=0.2)
    assert len(of_class(svg, "whisker")) == 1
    assert {"0.500", "0.250", "1,200", "3"} <= set(texts(svg))


def test_lines_stand_where_their_values_are() -> None:
    marks = [Mark(place=place, value=v, low=v - 0.1, high=v + 0.1, says=f"{v}") for place, v in ((0, 0.2), (1, 0.8))]
    chance = Line("chance", "b", [Mark(place=0, value=0.1, says="")])
    svg = drawn(lines("l", [Line("text", "a", marks), chance], y=(0, 1), x_ticks=[], x_title="x", band=True))
    y = axis(svg, "H", across=False)
    _, *circles = (element for element in svg.iter("circle") if element.find("title") is not None)  # after the key
    assert [float(circle.attrib["cy"]) for circle in circles] == pytest.approx([y(0.2), y(0.8)], abs=0.2)
    (band,) = of_class(svg, "band")
    corners = [float(corner.split()[1]) for corner in band.attrib["d"].strip("Mz").split(" L")]
    assert corners == pytest.approx([y(0.3), y(0.9), y(0.7), y(0.1)], abs=0.2)


def test_the_plane_has_one_scale_two_shapes_and_a_line_for_each_pair() -> None:
    plane = PcaProjection(["a", "b"], [(0.0, 0.0), (2.0, 0.0)], [(0.0, 1.0), (2.0, 1.0)], (0.4, 0.125))
    svg = drawn(scatter(plane))
    squares = [(float(e.attrib["x"]), float(e.attrib["y"])) for e in list(svg.iter("rect")) if e.get("width") == "5"]
    circles = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in svg.iter("circle") if e.get("r") == "2.8"]
    assert (len(squares), len(circles)) == (2, 2)
    across, up = squares[1][0] - squares[0][0], (squares[0][1] + 2.5) - circles[0][1]
    assert across == pytest.approx(2 * up, abs=0.3)
    (pairs,) = of_class(svg, "pair")
    assert pairs.attrib["d"].count("M") == pairs.attrib["d"].count("L") == 2
    assert "first axis: 40.0% of the variance" in texts(svg)
    assert "second axis: 12.5% of the variance" in texts(svg)


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

    def test_what_is_no_number_and_what_is_broken(self) -> None:
        svg = drawn(trend(self.MOMENTS, "recall@10") or "")
        assert len(of_class(svg, "whisker")) == 2, "two audits have a finite recall"
        assert len(of_class(svg, "cross")) == 1
        assert len(of_class(svg, "rule")) == 1
        assert "audits of 2026-01-02 to 2026-01-05" in texts(svg)
        assert trend(self.MOMENTS, "mrr") is None

    def test_a_gap_is_not_drawn_without_its_recall(self) -> None:
        svg = drawn(trend(self.MOMENTS, "gap", beside="recall@5") or "<svg/>")
        assert not list(svg.iter("title"))
        moments = (*self.MOMENTS[:3], moment(5, "b", measure("both", "gap", 0.3)))
        svg = drawn(trend(moments, "gap", beside="recall@10") or "")
        assert [title.text for title in svg.iter("title") if (title.text or "").startswith("audit ")] == [
            "audit 2, 2026-01-03 00:00, a: 0.4000"
        ]

    def test_a_long_title_is_cut_and_keeps_the_name_of_the_measure(self) -> None:
        part = f"filter:{'long' * 30}"
        one = MeasureRow(direction="both", stratum=part, name="recall@10", value=0.5, queries=9)
        svg = drawn(trend([moment(1, "a", one), moment(2, "a", one)], "recall@10", part) or "")
        assert texts(svg)[0].startswith("Recall@10, filter:long")
        assert len(texts(svg)[0]) < 80
        assert svg.attrib["aria-label"].endswith("long, 9 groups")

    def test_gaps_of_other_samples_are_left_out(self) -> None:
        svg = drawn(trend(self.MOMENTS, "gap") or "")
        titles = [title.text or "" for title in svg.iter("title")]
        assert [title for title in titles if title.startswith("audit ")] == [
            "audit 2, 2026-01-03 00:00, a: 0.4000",
            "audit 4, 2026-01-05 00:00, b: 0.3000",
        ]
        assert texts(svg)[0] == "gap, 100 groups"
