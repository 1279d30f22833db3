"""Requirements: what is written is what is meant, and what was not measured is not met."""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from alignment.modality import DIRECTIONS, MODALITIES
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.measures import Change
from alignment.retrieval.thresholds import TOLERANCE
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from connector.audits import auditor
from connector.audits.baseline import Baseline, Drift, PerQuery
from connector.audits.kinds import WAYS
from connector.audits.measure import BOTH, Measurement
from connector.audits.requirements import Requirement, UnmetRequirement, check_known, failures
from connector.audits.result import Audit
from connector.audits.stages import INDEX
from connector.errors import RequirementError
from connector.releases.release import open_release
from tests.support.errors import raises
from tests.support.slow import slow_unless
from tests.support.world import COLLECTION, SOME, World, audit, embedded, latent, opened_world, rows

NAMES = [
    "recall@10",
    "found@1",
    "ndcg@100",
    "exact.recall@5",
    "chance.recall@5",
    "mrr",
    "r_precision",
    "median_rank",
    "fidelity@10",
    "fidelity@10.p5",
    "fidelity@10.least",
    "fidelity@10.below90",
    "latency.p99",
    "certified",
    "hubness",
    "gap",
    "gap.raw",
    "mutual_neighbours",
]
PARTS = [
    "",
    INDEX,
    "filter:red cars",
    "filter:a:b=c",
    "language=de",
    "language missing",
    "url=http://host:6333/a?b=c@d",
    "price=>5",
    "price=<= 5",
    "note=recall@10>=0.4",
    "note=recall@10 drop",
    "emoji=🚗",
    "lines=a\nb",
    "text-to-images=x",
    'tags=["a", "b:c"]',
    "a:b missing",
    "number=-1.5e3",
]
LONG = 100_000
numbers = st.floats(allow_nan=False, allow_infinity=False)


def written(direction: str | None, part: str, name: str, drop: str, comparison: str, bound: str) -> str:
    return ":".join([*([direction] if direction else []), *([part] if part else []), name]) + drop + comparison + bound


class TestRead:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("recall@10>=0.4", (None, "", "recall@10", False, ">=", 0.4)),
            ("  mrr > .5 ", (None, "", "mrr", False, ">", 0.5)),
            ("text-to-image:recall@1>=1", ("text-to-image", "", "recall@1", False, ">=", 1.0)),
            ("image-to-text:median_rank<=3", ("image-to-text", "", "median_rank", False, "<=", 3.0)),
            ("both:gap<0.5", ("both", "", "gap", False, "<", 0.5)),
            ("fidelity@10.p5>=9e-1", (None, "", "fidelity@10.p5", False, ">=", 0.9)),
            ("exact.recall@5<1E0", (None, "", "exact.recall@5", False, "<", 1.0)),
            ("index:latency.p99<=+20", (None, "index", "latency.p99", False, "<=", 20.0)),
            ("text-to-image:filter:red:recall@5>=0.1", ("text-to-image", "filter:red", "recall@5", False, ">=", 0.1)),
            ("language=de:recall@5>=0.1", (None, "language=de", "recall@5", False, ">=", 0.1)),
            ("unseen recall@10>=.4", (None, "unseen", "recall@10", False, ">=", 0.4)),
            ("unseen:recall@10>=.4", (None, "unseen", "recall@10", False, ">=", 0.4)),
            (" text-to-image: seen  recall@1 > .4", ("text-to-image", "seen", "recall@1", False, ">", 0.4)),
            ("harmonic recall@10 drop<=0", (None, "harmonic", "recall@10", True, "<=", 0.0)),
            ("by caption recall@10>=.4", (None, "by caption", "recall@10", False, ">=", 0.4)),
            ("by image:recall@1>=.4", (None, "by image", "recall@1", False, ">=", 0.4)),
            (" text-to-image:by   fused recall@10<.4", ("text-to-image", "by fused", "recall@10", False, "<", 0.4)),
            ("seen index:fidelity@10>=.9", (None, "seen index", "fidelity@10", False, ">=", 0.9)),
            ("first_places<=.8", (None, "", "first_places", False, "<=", 0.8)),
            ("recall@10 drop<=0.02", (None, "", "recall@10", True, "<=", 0.02)),
            ("recall@10 drop <= 0", (None, "", "recall@10", True, "<=", 0.0)),
            ("image-to-text:index:fidelity@10  drop<=.5", ("image-to-text", "index", "fidelity@10", True, "<=", 0.5)),
        ],
    )
    def test_as_it_is_meant(self, text: str, expected: tuple[Any, ...]) -> None:
        r = Requirement.parse(text)
        assert (r.direction, r.part, r.name, r.is_drop, r.comparison, r.bound) == expected
        assert r.text == text.strip()

    @given(
        st.sampled_from([None, *DIRECTIONS, BOTH]),
        st.sampled_from(PARTS),
        st.sampled_from(NAMES),
        st.sampled_from([">=", "<=", ">", "<"]),
        numbers,
        st.sampled_from(["", " ", "  "]),
    )
    def test_every_part_name_and_number_comes_back(
        self, direction: str | None, part: str, name: str, comparison: str, bound: float, space: str
    ) -> None:
        text = written(direction, part, name, space, comparison, space + repr(bound))
        r = Requirement.parse(text)
        assert (r.direction, r.part, r.name, r.is_drop, r.comparison) == (direction, part, name, False, comparison)
        assert r.bound == bound
        assert Requirement.parse(r.text) == r

    @given(
        st.sampled_from([None, *DIRECTIONS, BOTH]),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from(NAMES),
    )
    @example(None, "=:@ drop<=1:", "mrr")
    def test_so_does_every_value_of_a_field(self, direction: str | None, value: str, name: str) -> None:
        r = Requirement.parse(written(direction, f"field={value}", name, " drop", "<=", "0.5"))
        assert (r.direction, r.part, r.name, r.is_drop) == (direction, f"field={value}", name, True)

    @given(st.text())
    @example("recall@10>=1" + "0" * 400)
    def test_anything_else_is_refused_and_nothing_else_is_raised(self, text: str) -> None:
        try:
            found = str(Requirement.parse(text).bound)
        except RequirementError as error:
            found = str(error)
        assert repr(text) in found or math.isfinite(float(found))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "recall@10",
            "recall@10=0.4",
            "recall@10>=",
            ">=0.4",
            "recall@10>=much",
            "recall@10>=1e",
            "recall@>=1",
            "recall@10>=0.4 and mrr>=0.1",
            "recall@10>=nan",
            "recall@10>=inf",
            "recall@10<=-inf",
            "recall@10>=1e999",
            "recall@10<=-1e999",
            "recall@10>=1..2",
            "recall@10 drop",
            "recall@10drop<=0.1",
            "recall@10 drops<=0.1",
            "recall@10 drop<=1e999",
            "index fidelity@10>=1",
            "index:unseen recall@10>=1",
            "language=de:seen recall@10>=1",
            "unseen seen recall@10>=1",
            "caption recall@10>=1",
            "captions recall@10>=1",
            "by title recall@10>=1",
            "by captions recall@10>=1",
            "bycaption recall@10>=1",
            "by unseen recall@10>=1",
            "unseen by image recall@10>=1",
            "index:by image recall@10>=1",
            "Recall@10>=0.1",
            "recall@10=>0.1",
            "recall@1 0>=1",
            # A drop has an upper bound, which is not negative.
            "mrr drop>=0.1",
            "mrr drop<0.1",
            "mrr drop>0.1",
            "mrr drop<=-0.1",
            "mrr drop<=-1e-9",
        ],
    )
    def test_what_cannot_be_read(self, text: str) -> None:
        with raises(RequirementError, repr(text)):
            Requirement.parse(text)

    @pytest.mark.parametrize("text", ["captions recall@10>=.4", "by title recall@10>=.4", "news recall@10>=.4"])
    def test_a_wrong_name_of_queries_apart_lists_the_right_ones(self, text: str) -> None:
        with raises(RequirementError, repr(text), "unseen, seen, harmonic, by image, by caption, by fused"):
            Requirement.parse(text)

    @pytest.mark.parametrize(
        "text",
        [
            " " * LONG + "x",
            "a:" * LONG + "!",
            "a." * LONG + "!",
            "a.b" * LONG + ">=",
            "a" + " " * LONG + "drop",
            "recall@10>=" + "1" * LONG + "e",
            " drop<=1:" * LONG,
            "unseen" + " " * LONG + "recall@10",
            "by" + " " * LONG + "caption recall@10",
            "by caption" + " " * LONG + "recall@10",
        ],
    )
    def test_no_text_takes_more_than_linear_time(self, text: str) -> None:
        began = time.process_time()
        with raises(RequirementError):
            Requirement.parse(text)
        assert time.process_time() - began < 2


def measure(value: float, direction: str = "text-to-image", name: str = "recall@10", part: str = "") -> Measurement:
    return Measurement(direction, name, value, None, None, 9, part)


def drift(before: float, after: float, low: float, high: float, *, name: str = "mrr", part: str = "") -> Drift:
    change = Change(before, after, Estimate(after - before, low, high), 0.01, 40, 1, 2)
    return Drift("text-to-image", part, name, 7, change)


def failed(text: str, measures: list[Measurement], drifts: list[Drift] | None = None) -> list[UnmetRequirement]:
    return failures([Requirement.parse(text)], measures, drifts or [])


class TestFailures:
    @given(numbers, numbers, st.sampled_from([">=", "<=", ">", "<"]))
    def test_a_bound_is_a_comparison(self, value: float, bound: float, comparison: str) -> None:
        assume(value == bound or abs(value - bound) > 2 * TOLERANCE * max(1.0, abs(bound)))
        met = {">=": value >= bound, "<=": value <= bound, ">": value > bound, "<": value < bound}[comparison]
        assert (failed(f"recall@10{comparison}{bound!r}", [measure(value)]) == []) == met

    @pytest.mark.parametrize("comparison", [">=", "<=", ">", "<"])
    def test_what_is_no_number_meets_nothing(self, comparison: str) -> None:
        (failure,) = failed(f"recall@10{comparison}0", [measure(math.nan)])
        assert failure.why == "text-to-image recall@10 is nan"

    def test_it_speaks_of_its_direction_its_part_and_its_name_alone(self) -> None:
        measures = [
            measure(0.1, direction, name, part)
            for direction in DIRECTIONS
            for part in ("", INDEX)
            for name in ("recall@1", "recall@10")
        ]
        for text, expected in {
            "recall@10>=1": [(direction, "") for direction in DIRECTIONS],
            "image-to-text:recall@10>=1": [("image-to-text", "")],
            "index:recall@10>=1": [(direction, INDEX) for direction in DIRECTIONS],
            "text-to-image:index:recall@10>=1": [("text-to-image", INDEX)],
        }.items():
            assert [(f.direction, f.requirement.part) for f in failed(text, measures)] == expected
            assert {f.value for f in failed(text, measures)} == {0.1}

    def test_it_says_the_measure_its_value_and_its_interval(self) -> None:
        (failure,) = failed(
            "language=de:recall@10>=0.5",
            [Measurement("image-to-text", "recall@10", 0.25, 0.125, 0.5, 9, "language=de")],
        )
        assert failure.why == "image-to-text language=de recall@10 is 0.2500 [0.1250, 0.5000]"

    @pytest.mark.parametrize(
        ("text", "direction", "where"),
        [
            ("recall@5>=0", BOTH, "in this audit"),
            ("image-to-text:recall@10>=0", "image-to-text", "in this audit"),
            ("recall@10 drop<=1", BOTH, "in both audits"),
        ],
    )
    def test_what_was_not_measured_is_not_met(self, text: str, direction: str, where: str) -> None:
        (failure,) = failed(text, [measure(0.5)])
        assert (failure.why, failure.direction, failure.value) == (f"it was not measured {where}", direction, None)

    @pytest.mark.parametrize(
        ("drifted", "bound", "is_met"),
        [
            (drift(0.5, 0.4, -0.12, -0.08), 0.05, False),  # more than chance and more than the margin
            (drift(0.5, 0.4, -0.12, -0.08), 0.2, True),  # within the margin
            (drift(0.5, 0.4, -0.25, 0.05), 0.05, True),  # chance
            (drift(1.0, 0.98, -0.03, -0.01), 0.02, True),  # 0.020000000000000018 in binary
            (drift(0.9, 0.6, -0.4, -0.2), 0.3, True),
            (drift(1.0, 0.979, -0.03, -0.01), 0.02, False),
            (drift(0.5, 0.6, 0.05, 0.15), 0.0, True),  # a gain
            (drift(0.5, 0.5, 0.0, 0.0), 0.0, True),
            (drift(3, 5, 1, 4, name="median_rank"), 1, False),  # a rank that rises
            (drift(5, 3, -4, -1, name="median_rank"), 0, True),
            (drift(5, math.inf, 1, math.inf, name="median_rank"), 1e300, False),
        ],
    )
    def test_a_drop_is_significant_and_larger_than_the_margin(self, drifted: Drift, bound: float, is_met: bool) -> None:
        found = failed(f"{drifted.name} drop<={bound!r}", [], [drifted])
        assert (found == []) == is_met
        for failure in found:
            c = drifted.change
            assert failure.why == (
                f"text-to-image {drifted.name} was {c.before:.4f} in audit 7 and is {c.after:.4f}: "
                f"{c.difference.value:+.4f} [{c.difference.low:+.4f}, {c.difference.high:+.4f}] over 40 queries"
            )

    def test_a_drop_is_not_confused_with_the_value(self) -> None:
        assert failed("mrr drop<=0.3", [measure(0.9, name="mrr")], [drift(0.9, 0.8, -0.2, -0.05)]) == []
        assert len(failed("mrr<=0.3", [measure(0.9, name="mrr")], [drift(0.9, 0.8, -0.2, -0.05)])) == 1


KNOWN = [
    *((direction, part, name) for direction in DIRECTIONS for part in ("", INDEX) for name in NAMES),
    (BOTH, "", "gap"),
]


class TestKnown:
    def known(self, text: str, *, against: bool = True) -> None:
        kept = {("", name): np.empty(0) for name in ("recall@10", "fidelity@10", "mrr")}
        before = Baseline(7, {direction: PerQuery([], [], [], kept) for direction in DIRECTIONS})
        check_known([Requirement.parse(text)], KNOWN, before if against else None)

    @pytest.mark.parametrize(
        "text",
        [
            "recall@7>=0",
            "recal@10>=0",
            "fidelity@10.p7>=0",
            "loss>=0",
            "sideways:recall@10>=0",
            "graph:recall@10>=0",
            "both:recall@10>=0",
            "text-to-image:both:recall@10>=0",
            "language=de:recall@10>=0",
        ],
    )
    def test_an_unknown_measure_is_refused_with_those_there_are(self, text: str) -> None:
        with raises(RequirementError, repr(text), "recall@10, found@1, ndcg@100", INDEX):
            self.known(text)

    def test_a_known_one_is_not(self) -> None:
        for name in NAMES:
            self.known(f"{name}>=0", against=False)
        self.known("both:gap>=0", against=False)

    def test_a_drop_needs_an_audit_to_compare_with(self) -> None:
        self.known("recall@10 drop<=0")
        with raises(RequirementError, "recall@10 drop<=0", "--baseline"):
            self.known("recall@10 drop<=0", against=False)

    def test_a_drop_is_bounded_of_what_is_kept_of_each_query(self) -> None:
        for text in ("fidelity@10.p5", "latency.p99", "chance.recall@5", "hubness", "both:gap", "index:latency.p99"):
            with raises(RequirementError, text, "audit 7", "recall@10, fidelity@10, mrr"):
                self.known(f"{text} drop<=0")
            self.known(f"{text}<=0")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with opened_world("edge", tmp_path_factory.mktemp("world")) as world:
        world.alignment()
        world.push(world.set("s", *parts()), metrics=SOME)
        world.push(world.set("t", *parts()), metrics=["cosine"], collection="coarse", quantization="scalar")
        yield world


class TestAnnounced:
    """What an audit says before it begins that it will measure, is what it measures."""

    def announced(
        self, world: World, metric: str, monkeypatch: pytest.MonkeyPatch, collection: str = COLLECTION, **asked: Any
    ) -> tuple[Audit, list[tuple[str, str, str]]]:
        """Audit, and return what was announced beside what was found."""
        said: list[list[tuple[str, str, str]]] = []
        monkeypatch.setattr(auditor, "check_known", lambda requirements, known, before, **of: said.append(known))
        release = open_release(world.provenance, world.store, collection, metric)
        embedding_set = EmbeddingSet.open(world.home / "sets" / ("s" if collection == COLLECTION else "t"))
        found = audit(release, world.store, embedding_set, ks=(1, 4), **asked)
        (known,) = said
        return found, known

    @pytest.mark.parametrize(
        ("metric", "collection"),
        slow_unless(
            lambda case: case[0] in ("cosine", "chi2"),
            [*((metric, COLLECTION) for metric in SOME), ("cosine", "coarse")],
        ),
    )
    def test_of_a_whole_audit_all_is_measured_that_was_announced_and_nothing_else(
        self, world: World, metric: str, collection: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        few = '{"must": [{"key": "number", "range": {"lt": 9}}]}'
        found, known = self.announced(
            world,
            metric,
            monkeypatch,
            collection,
            queries="all",
            gallery="all",
            slices=["color", "half"],
            filters={"few": few, "or else": few},
        )
        measured = [(m.direction, m.part, m.name) for m in found.measures]
        assert sorted(measured) == sorted(known)
        assert len(set(measured)) == len(measured)
        parts = {part for _, part, _ in known}
        assert {"", INDEX, "filter:few", "filter:or else", "color=red", "half missing", "half=1"} <= parts
        kept = {(direction, *place) for direction, its in found.per_query.items() for place in its.values}
        assert kept <= set(known)

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", SOME)
    def test_of_one_of_few_queries_nothing_is_measured_that_was_not_announced(
        self, world: World, metric: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nothing = '{"must": [{"key": "number", "range": {"lt": 0}}]}'
        found, known = self.announced(world, metric, monkeypatch, sample=3, filters={"nothing": nothing})
        missing = set(known) - {(m.direction, m.part, m.name) for m in found.measures}
        assert {(m.direction, m.part, m.name) for m in found.measures} < set(known)
        # Too few groups for a gap and for what captions find, and a filter that matches nothing.
        assert {part or name.partition(".")[0] for _, part, name in missing} == {
            "gap",
            "sliced",
            "bures",
            "mutual_neighbours",
            "filter:nothing",
            "seen filter:nothing",
            *WAYS,
        }


def parts() -> list[Rows]:
    """Pairs with a color each, and every other one with a half."""
    payloads = [{"number": n, "color": ["red", "blue"][n % 2], **({"half": n % 4} if n % 2 else {})} for n in range(40)]
    points = latent(40)
    return [rows(m, embedded(m, points), payloads=payloads) for m in MODALITIES]
