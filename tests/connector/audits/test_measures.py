"""The registry of measures: every entry can be measured, named and explained."""

import pytest

from connector.audits.measure import Measure
from connector.audits.measures import MEASURES, find_measure, names_of, trended
from connector.audits.requirements import Requirement

KS = (1, 5)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
class TestEveryMeasure:
    def test_it_has_one_function_unless_stages_alone_have_it(self, measure: Measure) -> None:
        functions = [measure.per_query, measure.per_direction, measure.of_geometry, measure.of_kinds]
        assert sum(function is not None for function in functions) == ("whole" in measure.parts)

    def test_a_stratum_has_values_for_each_query(self, measure: Measure) -> None:
        assert "stratum" not in measure.parts or measure.per_query is not None

    def test_only_values_for_each_query_can_be_compared(self, measure: Measure) -> None:
        assert not measure.compared or (measure.per_query is not None and measure.better != "neither")

    def test_its_names_are_found_and_can_be_required(self, measure: Measure) -> None:
        for name, k in measure.named(KS):
            assert find_measure(name) == (measure, "" if k is None else str(k))
            assert Requirement.parse(f"{name}>=0.5").name == name
            assert len(name) <= 64  # as SQL keeps it

    def test_its_sentence_says_which_length_and_whether_lower_is_better(self, measure: Measure) -> None:
        said = measure.explained("7")
        assert ("7" in said) == ("{k}" in measure.sentence)
        assert said.endswith("lower is better") == (measure.better == "lower")

    def test_its_range_has_a_low_and_a_high_end(self, measure: Measure) -> None:
        assert measure.low < measure.high


def test_names_have_each_length_of_list() -> None:
    assert names_of("stratum", KS) == ["recall@1", "recall@5"]
    assert set(names_of("stage", KS)) >= {"recall@5", "fidelity@1", "fidelity@5.p5", "latency.p99"}
    assert trended(5) == ["recall@5", "fidelity@5", "gap"]


def test_a_measure_that_is_unknown_has_no_entry() -> None:
    assert find_measure("loss@10") == (None, "10")
