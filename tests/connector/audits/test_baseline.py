"""Drift: what audits keep of each query keeps every digit, and only what is worse by more than chance is a drop."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from alignment.modality import DIRECTIONS
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.measures import Change
from alignment.sets.embedding_set import EmbeddingSet
from connector.audits.baseline import Baseline, Drift, PerQuery, drifts, find_baseline, worse_recalls
from connector.audits.history import history
from connector.audits.plan import AuditPlan
from connector.audits.recording import record
from connector.audits.requirements import Requirement, check_known, failures
from connector.errors import RequirementError
from connector.provenance.audits import Audits
from connector.provenance.tables import MeasureRow, ReleaseRow
from connector.releases.release import open_release
from tests.support.errors import raises
from tests.support.world import COLLECTION, World, audit, opened_world, pairs

PLAN = AuditPlan()
N = 40
DIRECTION = "text-to-image"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


def per_query(values: npt.ArrayLike, *, name: str = "recall@1", part: str = "", first: int = 0) -> PerQuery:
    """One measure of queries with the keys `FIRST`, `FIRST + 1`, ..., each of a group of its own."""
    column = np.array(values, np.float64)
    keys = [str(first + number) for number in range(len(column))]
    return PerQuery(keys, keys, keys, {(part, name): column})


def only_drift(before: PerQuery, now: PerQuery, **options: Any) -> Drift:
    (found,) = drifts(Baseline(7, {DIRECTION: before}), {DIRECTION: now}, **options)
    return found


def drop(its: Drift, bound: float) -> list[str]:
    """Why a drop is larger than `bound` allows."""
    label = f"{its.part}:{its.name}" if its.part else its.name
    return [failure.why for failure in failures([Requirement.parse(f"{label} drop<={bound}")], [], [its])]


class TestPerQuery:
    @given(data=st.data(), n=st.integers(0, 5), places=st.lists(st.tuples(TEXTS, TEXTS), unique=True, max_size=4))
    def test_every_digit_comes_back(self, data: st.DataObject, n: int, places: list[tuple[str, str]]) -> None:
        texts = st.lists(TEXTS, min_size=n, max_size=n)
        keys, groups, contents = data.draw(texts), data.draw(texts), data.draw(texts)
        numbers = st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=n, max_size=n)
        values = {place: np.array(data.draw(numbers), np.float64) for place in places}
        back = PerQuery.unpacked(PerQuery(keys, groups, contents, values).packed())
        assert (list(back.keys), list(back.groups), list(back.contents)) == (keys, groups, contents)
        assert list(back.values) == places
        for place, column in values.items():
            assert back.values[place].dtype == np.float64
            np.testing.assert_array_equal(back.values[place], column)

    def test_what_is_next_to_what_stays_apart(self) -> None:
        values = [0.1, np.nextafter(0.1, 1), -0.0, np.inf, -np.inf, np.nan, 5e-324]
        back = PerQuery.unpacked(per_query(values).packed()).values["", "recall@1"]
        assert [float(value).hex() for value in back] == [float(value).hex() for value in values]

    def test_it_is_smaller_than_its_digits(self) -> None:
        zeros = [0.0] * 10_000
        assert len(per_query(zeros).packed()) < len(np.array(zeros).tobytes())


class TestDrifts:
    def test_the_same_audit_has_not_drifted(self) -> None:
        values = np.random.default_rng(0).random(200)
        found = only_drift(per_query(values), per_query(values))
        assert found.change.difference == Estimate(0.0, 0.0, 0.0)
        assert (found.change.significant, found.value, found.audit) == (False, 0.0, 7)
        assert drop(found, 0.0) == []

    def test_a_real_loss_is_significant_and_its_size_is_known(self) -> None:
        before = [1.0] * 200
        now = [0.0 if number % 5 == 0 else 1.0 for number in range(200)]
        found = only_drift(per_query(before), per_query(now))
        assert (found.change.before, found.change.after) == (1.0, 0.8)
        assert found.change.significant
        assert found.value == pytest.approx(0.2)
        low, high = found.change.difference.low, found.change.difference.high
        assert low < -0.2 < high < 0
        # A share of 200 independent queries: the normal interval around it.
        assert (low, high) == pytest.approx((-0.2 - 1.96 * 0.0283, -0.2 + 1.96 * 0.0283), abs=0.01)

    def test_a_gain_is_no_drop(self) -> None:
        found = only_drift(per_query([0.0] * 100), per_query([1.0] * 100))
        assert (found.change.significant, found.value) == (True, 0.0)
        assert drop(found, 0.0) == []

    def test_only_shared_queries_are_compared(self) -> None:
        before, now = per_query([0.0] * 50 + [1.0] * 50), per_query([1.0] * 50 + [0.0] * 70, first=50)
        found = only_drift(before, now)  # what is asked now without having been asked before finds nothing
        assert found.change.difference == Estimate(0.0, 0.0, 0.0)
        assert (found.change.queries, found.change.only_before, found.change.only_after) == (50, 50, 70)

    def test_queries_are_matched_by_key_in_whatever_order(self) -> None:
        values = np.random.default_rng(1).random(60)
        order = np.random.default_rng(2).permutation(60)
        before = per_query(values)
        keys = [before.keys[place] for place in order]
        now = PerQuery(keys, keys, keys, {("", "recall@1"): values[order]})
        assert only_drift(before, now).change.difference == Estimate(0.0, 0.0, 0.0)

    @pytest.mark.parametrize("what", ["contents", "groups"])
    def test_queries_that_changed_are_left_out(self, what: str) -> None:
        """A set that was encoded anew from another corpus asks other things under the same keys."""
        before, now = per_query([1.0] * 60), per_query([1.0] * 40 + [0.0] * 20)
        changed: Any = {what: [*now.keys[:40], *(f"new {key}" for key in now.keys[40:])]}
        now = replace(now, **changed)
        found = only_drift(before, now)
        assert found.change.difference == Estimate(0.0, 0.0, 0.0)
        assert (found.change.queries, found.change.only_before, found.change.only_after) == (40, 0, 0)
        earlier = Baseline(7, {DIRECTION: before})
        assert earlier.check_shared({DIRECTION: before}) == []
        few, says = earlier.check_shared({DIRECTION: now})
        assert few == (
            "text-to-image: audit 7 has only 40 of these 60 queries; a drop may be there that so few do not show."
        )
        assert says == (
            "text-to-image: 20 of 60 queries have changed in their embedding set since audit 7; the comparison leaves "
            "them out."
        )

    @pytest.mark.parametrize(("images", "said"), [(100, False), (104, False), (120, True), (80, True)])
    def test_a_gallery_of_another_size_is_told(self, images: int, said: bool) -> None:
        says = Baseline(7, {}, {"image": 100, "text": 500}).gallery_warning({"image": images, "text": 500})
        assert (says is not None) == said
        if says:
            assert f"since audit 7, from 100 images and 500 texts to {images} images and 500 texts" in says

    @pytest.mark.parametrize("first", [0, 5])
    def test_it_is_known_before_anything_is_asked_that_none_is_shared(self, first: int) -> None:
        now = replace(per_query([1.0] * 5, first=first), contents=["new"] * 5)
        with raises(RequirementError, "audit 7", DIRECTION):
            Baseline(7, {DIRECTION: per_query([1.0] * 5)}).check_shared({DIRECTION: now})

    def test_no_query_is_shared(self) -> None:
        with raises(RequirementError, "audit 7", "recall@1"):
            only_drift(per_query([1.0] * 5), per_query([1.0] * 5, first=5))

    @pytest.mark.parametrize(
        ("name", "is_compared"),
        [
            ("recall@7", True),
            ("exact.recall@1", True),
            ("fidelity@3", True),
            ("mrr", True),
            ("median_rank", True),
            ("ndcg@5", False),
            ("certified", False),
        ],
    )
    def test_what_is_compared_without_being_asked_for(self, name: str, is_compared: bool) -> None:
        its = per_query([1.0] * 5, name=name)
        before = Baseline(7, {DIRECTION: its})
        assert [each.name for each in drifts(before, {DIRECTION: its})] == [name] * is_compared
        assert [each.name for each in drifts(before, {DIRECTION: its}, [("", name)])] == [name]

    def test_parts_are_compared_when_they_are_asked_for(self) -> None:
        its = per_query([1.0] * 5, part="index")
        before = Baseline(7, {DIRECTION: its})
        assert drifts(before, {DIRECTION: its}) == []
        (found,) = drifts(before, {DIRECTION: its}, [("index", "recall@1")])
        assert (found.part, found.in_words) == (
            "index",
            "text-to-image index recall@1 was 1.0000 in audit 7 and is 1.0000: +0.0000 [+0.0000, +0.0000] "
            "over 5 queries",
        )

    def test_what_was_not_measured_before_is_left_out(self) -> None:
        assert drifts(Baseline(7, {DIRECTION: per_query([1.0])}), {DIRECTION: per_query([1.0], name="recall@5")}) == []

    def test_the_seed_decides(self) -> None:
        rng = np.random.default_rng(4)
        before, now = per_query(rng.random(50)), per_query(rng.random(50))
        first, again, other = (only_drift(before, now, seed=seed).change.difference for seed in (3, 3, 4))
        assert first == again
        assert first.value == other.value
        assert first != other


class TestTheMedianRank:
    @pytest.mark.parametrize(("then", "now", "expected"), [(1.0, 4.0, 3.0), (4.0, 1.0, 0.0), (np.inf, np.inf, 0.0)])
    def test_lower_is_better(self, then: float, now: float, expected: float) -> None:
        its = [per_query([value] * 30, name="median_rank") for value in (then, now)]
        found = only_drift(*its)
        assert found.value == expected
        assert drop(found, 2.0) == ([found.in_words] if expected > 2 else [])

    def test_what_is_not_found_any_more_is_infinitely_worse(self) -> None:
        its = [per_query([value] * 30, name="median_rank") for value in (3.0, np.inf)]
        found = only_drift(*its)
        assert found.value == np.inf
        assert "was 3.0000 in audit 7 and is inf: +inf [+inf, +inf] over 30 queries" in drop(found, 1e9)[0]
        assert only_drift(*reversed(its)).value == 0.0


class TestWorseRecalls:
    """Of eight recalls that are compared with the live ones, one is below by chance in more than one of 20 audits."""

    @staticmethod
    def by_chance(rng: np.random.Generator) -> list[Drift]:
        """Two audits that differ by chance: means that are normal, as a bootstrap of many queries has them."""
        z = rng.normal(size=8)
        changes = [
            Change(0.5, 0.5 + d, Estimate(d, d - 1.96, d + 1.96), p, 80, 0, 0)
            for d, p in zip(z, norm.cdf(z), strict=True)
        ]
        return [Drift(DIRECTION, str(part), "recall@10", 7, changed) for part, changed in enumerate(changes)]

    def test_a_false_alarm_is_as_rare_as_of_one_recall_alone(self, rng: np.random.Generator) -> None:
        audits = [self.by_chance(rng) for _ in range(4000)]
        assert np.mean([any(drift.value for drift in compared) for compared in audits]) > 0.15
        assert np.mean([bool(worse_recalls(compared, 10)) for compared in audits]) == pytest.approx(0.05, abs=0.01)

    def test_what_is_lost_is_found(self, rng: np.random.Generator) -> None:
        def audit(loss: float) -> dict[str, PerQuery]:
            return {d: per_query(rng.random(80) < 0.6 * (1 - loss), name="recall@10") for d in DIRECTIONS}

        compared = drifts(Baseline(7, audit(0.0)), audit(0.8))
        assert worse_recalls(compared, 10) == compared
        assert worse_recalls(compared, 5) == []


class TestTheRequirement:
    """A regression is a drop that is significant and larger than the margin."""

    @staticmethod
    def drifted(value: float, low: float, high: float) -> Drift:
        became = Change(0.8, 0.8 + value, Estimate(value, low, high), 0.01, 100, 0, 0)
        return Drift(DIRECTION, "", "recall@1", 7, became)

    @pytest.mark.parametrize(
        ("value", "low", "high", "fails"),
        [
            (-0.05, -0.07, -0.03, True),  # significant, and larger than the margin
            (-0.01, -0.015, -0.005, False),  # significant alone
            (-0.05, -0.12, 0.02, False),  # larger alone
            (-0.05, -0.1, 0.0, False),  # an interval that touches zero
            (-0.02, -0.03, -0.01, False),  # no larger than the margin
            (0.05, 0.03, 0.07, False),  # a gain
        ],
    )
    def test_both_or_nothing(self, value: float, low: float, high: float, fails: bool) -> None:
        found = self.drifted(value, low, high)
        assert drop(found, 0.02) == ([found.in_words] if fails else [])

    def test_the_failure_has_the_values_and_the_interval(self) -> None:
        found = self.drifted(-0.05, -0.07, -0.03)
        (failure,) = failures([Requirement.parse("text-to-image:recall@1 drop<=0.02")], [], [found])
        assert (failure.direction, failure.value) == (DIRECTION, 0.05)
        assert failure.why == (
            "text-to-image recall@1 was 0.8000 in audit 7 and is 0.7500: -0.0500 [-0.0700, -0.0300] over 100 queries"
        )

    def test_of_another_direction_it_says_nothing(self) -> None:
        found = self.drifted(-0.05, -0.07, -0.03)
        (failure,) = failures([Requirement.parse("image-to-text:recall@1 drop<=0.02")], [], [found])
        assert failure.why == "it was not measured in both audits"

    @pytest.mark.parametrize("text", ["gap drop<=0.1", "image-to-text:recall@1 drop<=0.1", "recall@5 drop<=0.1"])
    def test_of_what_is_not_kept_of_each_query(self, text: str) -> None:
        known = [(d, "", name) for d in DIRECTIONS for name in ("recall@1", "recall@5")] + [("both", "", "gap")]
        before = Baseline(7, {DIRECTION: per_query([1.0])})
        with raises(RequirementError, text, "audit 7", "recall@1"):
            check_known([Requirement.parse(text)], known, before)
        check_known([Requirement.parse("recall@1 drop<=0.1"), Requirement.parse("recall@5>=0")], known, before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A release with five audits: two alike, one of another gallery, one of other pairs, one that is broken."""
    with opened_world("edge", tmp_path_factory.mktemp("world")) as opened:
        opened.alignment()
        opened.push(opened.set("s", *pairs(N)), metrics=["cosine", "dot"])
        opened.set("t", *pairs(N))
        for asked in ({}, {}, {"gallery": "all"}, {"pairs": "t"}, {"broken": "its points are gone"}):
            recorded(opened, **asked)
        yield opened


def recorded(world: World, *, pairs: str = "s", broken: str | None = None, metric: str = "cosine", **asked: Any) -> int:
    """Audit, and record it; return its number."""
    release = open_release(world.provenance, world.store, COLLECTION, metric)
    embedding_set = EmbeddingSet.open(world.home / "sets" / pairs)
    found = audit(release, world.store, embedding_set, ks=(1,), **asked)
    found = replace(found, broken=broken)
    with world.provenance.runs.start("audit", {}) as run:
        return record(found, world.provenance, run, world.provenance.artifacts.record_set(embedding_set))


def row_of(world: World, metric: str = "cosine") -> ReleaseRow:
    (row,) = world.provenance.releases.find(collection=COLLECTION, metric=metric)
    return row


class TestEarlier:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("against", "plan", "name", "number"),
        [
            ("last", PLAN, "s", 2),
            ("live", PLAN, "s", 2),
            ("1", PLAN, "s", 1),
            ("02", PLAN, "s", 2),
            ("last", AuditPlan(gallery="all"), "s", 3),
            ("3", AuditPlan(gallery="all"), "s", 3),
            ("last", PLAN, "t", 4),
            ("last", AuditPlan(ks=(3,), sample=2, seed=9, slices=["x"], max_qps=1.0), "s", 2),
        ],
    )
    def test_which_it_is(self, world: World, against: str, plan: AuditPlan, name: str, number: int) -> None:
        found = find_baseline(world.provenance, row_of(world), against, plan, name)
        assert found.number == number
        assert set(found.queries) == set(DIRECTIONS)
        assert ("index", "recall@1") in found.queries[DIRECTION].values
        assert len(found.queries[DIRECTION].keys) == len(found.queries[DIRECTION].values["", "mrr"]) > 0

    @pytest.mark.parametrize(
        ("against", "plan", "name", "message"),
        [
            (
                "2",
                AuditPlan(queries="all"),
                "s",
                r"audit 2 is of s \(queries held-out, gallery held-out\), this one would be of s \(queries all, "
                r"gallery held-out\); they cannot be compared",
            ),
            ("2", AuditPlan(gallery="all"), "s", r"would be of s \(queries held-out, gallery all\)"),
            ("2", PLAN, "t", r"audit 2 is of s \(.*\), this one would be of t \(queries held-out, gallery held-out\)"),
            (
                "2",
                AuditPlan(protocol="coco-1k"),
                "s",
                r"audit 2 is of s \(.*\), this one would be of s \(protocol coco-1k",
            ),
            (
                "last",
                AuditPlan(queries="all"),
                "s",
                r"has no earlier audit of s \(queries all, gallery held-out\); it has audits of s \(queries held-out, "
                r"gallery all\) and s \(queries held-out, gallery held-out\) and t \(.*\), which cannot be compared; "
                "audit it once without --baseline",
            ),
            ("live", PLAN, "u", r"the live release of things has no earlier audit of u \(queries held-out, gallery "),
            ("5", PLAN, "s", "audit 5 found its release broken and measured nothing; name another"),
            ("6", PLAN, "s", "there is no audit 6; `modalign audit COLLECTION --history` lists them"),
            *(
                (text, PLAN, "s", "expected last, live or the number of an audit, got ")
                for text in ("", "Last", "-1", "1.0", "²", "1 ", "9" * 10, "9" * 5000)
            ),
        ],
    )
    def test_refused(self, world: World, against: str, plan: AuditPlan, name: str, message: str) -> None:
        with pytest.raises(RequirementError, match=message):
            find_baseline(world.provenance, row_of(world), against, plan, name)

    @pytest.mark.parametrize(("against", "what"), [("last", "release things.dot"), ("live", "the live release of")])
    def test_there_is_none(self, world: World, against: str, what: str) -> None:
        message = rf"{what}.* has no earlier audit of s \(.*\); audit it once without --baseline$"
        with pytest.raises(RequirementError, match=message):
            find_baseline(world.provenance, row_of(world, "dot"), against, PLAN, "s")

    def test_there_is_no_live_release(self, world: World) -> None:
        row = ReleaseRow(store_id=row_of(world).store_id, collection="others", metric="cosine")
        with raises(RequirementError, "others", "cosine"):
            find_baseline(world.provenance, row, "live", PLAN, "s")

    def test_an_audit_of_before_queries_were_kept(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Audits, "per_query", lambda self, number: {})
        with raises(RequirementError, "audit 2", "--baseline"):
            find_baseline(world.provenance, row_of(world), "last", PLAN, "s")

    def test_an_audit_of_before_contents_were_kept(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """What changed since could not be told from what did not."""
        old = io.BytesIO()
        pq.write_table(pa.table({"key": ["1"], "group": ["1"], "\0recall@1": [1.0]}), old)
        kept = dict.fromkeys(DIRECTIONS, old.getvalue())
        monkeypatch.setattr(Audits, "per_query", lambda self, number: kept)
        with raises(RequirementError, "audit 2", "--baseline"):
            find_baseline(world.provenance, row_of(world), "last", PLAN, "s")

    def test_an_audit_compares_with_what_was_recorded(self, world: World) -> None:
        before = find_baseline(world.provenance, row_of(world), "last", PLAN, "s")
        release = open_release(world.provenance, world.store, COLLECTION, "cosine")
        found = audit(release, world.store, EmbeddingSet.open(world.home / "sets" / "s"), ks=(1,), baseline=before)
        assert {(d.direction, d.name) for d in found.drifts} == {
            (direction, name)
            for direction in DIRECTIONS
            for name in ("recall@1", "exact.recall@1", "fidelity@1", "mrr", "median_rank")
        }
        for each in found.drifts:
            assert each.change.difference == Estimate(0.0, 0.0, 0.0)
            assert each.change.after == pytest.approx(found.measure(each.direction, each.name, each.part).value)


class TestHistory:
    def test_oldest_first(self, world: World) -> None:
        moments = history(world.provenance, [row_of(world)], limit=30)
        assert [moment.audit for moment in moments] == [1, 2, 3, 4, 5]
        assert [moment.verdict for moment in moments] == ["measured"] * 4 + ["broken"]
        assert [moment.at for moment in moments] == sorted(moment.at for moment in moments)
        assert [moment.asked for moment in moments[1:4]] == [
            "s (queries held-out, gallery held-out)",
            "s (queries held-out, gallery all)",
            "t (queries held-out, gallery held-out)",
        ]
        assert {(moment.release, moment.metric) for moment in moments} == {(row_of(world).physical_name, "cosine")}

    @pytest.mark.parametrize(("limit", "expected"), [(1, [5]), (3, [3, 4, 5]), (5, [1, 2, 3, 4, 5])])
    def test_the_newest_are_shown(self, world: World, limit: int, expected: list[int]) -> None:
        assert [moment.audit for moment in history(world.provenance, [row_of(world)], limit=limit)] == expected

    def test_each_has_its_own_measures(self, world: World) -> None:
        for moment in history(world.provenance, [row_of(world)], limit=30):
            assert {measure.audit_id for measure in moment.measures} == {moment.audit}
            assert isinstance(moment.measures[0], MeasureRow)

    def test_of_a_release_that_was_never_audited(self, world: World) -> None:
        assert history(world.provenance, [row_of(world, "dot")], limit=30) == []
