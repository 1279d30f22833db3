"""Ingesting in parts: one process or several take them all, and together they are the corpus."""

import math
from collections.abc import Callable, Iterator

import pytest

from alignment.sets.writer import SetWriter
from connector.corpora.formats import open_corpus
from connector.corpora.items import Entry, Item, PassedOver
from connector.corpora.partition import CorpusPart
from connector.errors import CorpusError, MismatchError
from connector.rejects import Reject
from tests.support.errors import raises
from tests.support.ingesting import SET, Bench, N, arm

pytestmark = pytest.mark.usefixtures("in_small_steps")


class TestParts:
    def test_together_they_are_the_corpus(self, bench: Bench) -> None:
        corpus = open_corpus(bench.manifest)
        parts = [list(CorpusPart(corpus.path, corpus, number, 3)) for number in (1, 2, 3)]
        assert all(parts)
        named = [(item.modality, item.key) for part in parts for item in part if isinstance(item, Item)]
        assert sorted(named) == sorted((item.modality, item.key) for item in corpus if isinstance(item, Item))

    def test_a_row_that_cannot_be_read_is_refused_by_one_part(self, bench: Bench) -> None:
        bench.extra = [{"image": "no key"}]
        bench.write(bench.pairs)
        assert bench.ingest(parts=3).counts["rejected"] == 1

    def test_a_field_that_is_left_out_hides_no_item_of_another_part(self, bench: Bench) -> None:
        bench.extra = [{"key": "x", "caption": "red", "year": math.nan}]
        bench.write(bench.pairs)
        corpus = open_corpus(bench.manifest)
        entries = [entry for number in (1, 2, 3) for entry in CorpusPart(corpus.path, corpus, number, 3)]
        assert [entry.reason for entry in entries if isinstance(entry, Reject)] == ["payload-not-json"]
        assert [entry for entry in entries if isinstance(entry, PassedOver)] == []

    def test_one_process_takes_them_all(self, bench: Bench, make: Callable[..., Bench]) -> None:
        done = bench.ingest(parts=3)
        assert done.counts["written"] == 3 * N
        whole = make(name="whole")
        whole.ingest()
        ours, theirs = bench.points(), whole.points()
        assert {n: {m: set(p) for m, p in of.items()} for n, of in ours.items()} == {
            n: {m: set(p) for m, p in of.items()} for n, of in theirs.items()
        }
        assert bench.world.states() == whole.world.states()
        assert set(bench.sets()) == {f"{SET}.part-{number}-of-3" for number in (1, 2, 3)}
        assert bench.ingest(parts=3).counts == {"already_in_set": 3 * N, "unchanged": 3 * N}

    def test_parts_may_be_empty_but_not_all_of_them(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.write(bench.pairs[:1])
        assert bench.ingest(parts=9).counts["written"] == 3
        nothing = make(name="nothing")
        nothing.write([])
        with raises(CorpusError, nothing.manifest):
            nothing.ingest(parts=2)
        nothing.write(nothing.pairs)
        assert nothing.ingest(parts=2).counts["written"] == 3 * N

    def test_nothing_is_live_before_all_are_done(
        self, make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make()
        with monkeypatch.context() as patched:
            arm(bench, patched, "writer", "finish", 2, OSError("gone"))
            with pytest.raises(OSError, match="gone"):
                bench.ingest(parts=3)
        assert bench.world.store.aliases() == {}
        assert [state for state, _ in bench.world.states().values()] == ["building"]
        read: list[str] = []
        plain = CorpusPart.__iter__

        def noted(self: CorpusPart) -> Iterator[Entry]:
            read.append(f"{self.number}")
            return plain(self)

        monkeypatch.setattr(CorpusPart, "__iter__", noted)
        bench.ingest(parts=3)
        assert read == ["3"]  # what is done is not done again
        assert list(bench.world.states().values()) == [("live", 3 * N)]

    @pytest.mark.parametrize(("first", "then"), [(2, 3), (None, 2), (2, None)])
    def test_another_division_is_refused(self, bench: Bench, first: int | None, then: int | None) -> None:
        bench.ingest(parts=first)
        before = bench.everything()
        with raises(MismatchError, "--parts"):
            bench.ingest(parts=then)
        with bench.world.provenance.database.session() as session:
            from connector.provenance.tables import LeaseRow

            session.query(LeaseRow).delete()
        assert bench.everything() == before

    def test_a_part_that_another_process_still_writes_is_passed_over(
        self, make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make()
        path = bench.world.home / "sets" / f"{SET}.part-1-of-2"
        slow = SetWriter(path, corpus="slow", encoders={})
        slow.__enter__()
        order: list[str] = []
        enter = SetWriter.__enter__

        def noted(self: SetWriter) -> SetWriter:
            writer = enter(self)
            order.append(self.path.name)
            if self.path != path:
                slow.__exit__(OSError, None, None)  # the other process notices that its claim is lost
            return writer

        monkeypatch.setattr(SetWriter, "__enter__", noted)
        assert bench.ingest(parts=2).counts["written"] == 3 * N
        assert order == [f"{SET}.part-2-of-2", f"{SET}.part-1-of-2"]

    def test_what_cannot_be_verified_begins_anew(
        self, make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make()
        with monkeypatch.context() as patched:
            arm(bench, patched, "store", "ready", 0, MismatchError("other counts"))
            with pytest.raises(MismatchError):
                bench.ingest(parts=2)
        assert bench.ingest(parts=2).counts == {"already_in_set": 3 * N, "unchanged": 3 * N}
