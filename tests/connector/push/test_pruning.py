"""Pruning: what left the corpus leaves sets, stores and ledger, unless a part of the corpus may be unread."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import CorpusError, ProvenanceError
from tests.support.errors import raises
from tests.support.fakes import Pair
from tests.support.ingesting import SET, Bench, N, Outcome, arm
from tests.support.slow import slow_unless
from tests.support.sparse_copy import copy_sparse
from tests.support.world import opened_world

pytestmark = pytest.mark.usefixtures("in_small_steps")


@pytest.fixture(scope="module")
def pruned(
    drawn: tuple[Path, list[Pair]],
    templates: Mapping[str, tuple[Path, Outcome]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """What a prune that nothing disturbs leaves behind."""
    directory, pairs = drawn
    home = copy_sparse(templates["cosine"][0], tmp_path_factory.mktemp("pruned") / "home")
    with opened_world("edge", home) as world:
        bench = Bench(world, pairs, directory / "pruned.jsonl")
        bench.write([*pairs[:5], *pairs[9:]])
        bench.ingest(prune=lambda gone: True)
        return bench.everything()


class TestPrune:
    @pytest.mark.slow
    def test_what_left_the_corpus_leaves_points_rows_and_ledger(self, bench: Bench, make: Callable[..., Bench]) -> None:
        bench.ingest(metrics=["cosine", "chi2"])
        bench.write([*bench.pairs[:5], *bench.pairs[9:]])
        asked: list[int] = []

        def agree(gone: int) -> bool:
            asked.append(gone)
            return True

        done = bench.ingest(metrics=["cosine", "chi2"], prune=agree)
        assert asked == [12]
        assert done.counts["pruned"] == 12
        assert "written" not in done.counts  # the rows that stay have moved up in their shards
        plain = make(name="plain")
        plain.write([*bench.pairs[:5], *bench.pairs[9:]])
        plain.ingest(metrics=["cosine", "chi2"])
        assert bench.everything()[0] == plain.everything()[0]
        ours, theirs = bench.points(), plain.points()
        assert {n: {m: set(p) for m, p in of.items()} for n, of in ours.items()} == {
            n: {m: set(p) for m, p in of.items()} for n, of in theirs.items()
        }
        assert bench.everything()[2] == 2 * 3 * (N - 4)
        assert bench.ingest(metrics=["cosine", "chi2"], prune=lambda gone: pytest.fail("nothing is left to ask")).counts

    def test_no_means_no(self, bench: Bench) -> None:
        bench.ingest()
        before = bench.everything()
        bench.write(bench.pairs[:20])
        assert bench.ingest(prune=lambda gone: False).counts["no_longer_in_corpus"] == 12
        assert bench.everything() == before

    @pytest.mark.slow
    def test_rows_that_cannot_be_read_keep_everything(self, bench: Bench) -> None:
        bench.ingest()
        before = bench.everything()
        bench.extra = [{"image": "no key"}]
        bench.write(bench.pairs[:20])
        done = bench.ingest(prune=lambda gone: pytest.fail("nobody is asked"))
        assert (done.counts["not_pruned"], done.counts["rejected"]) == (12, 1)
        assert bench.everything() == before

    @pytest.mark.slow
    def test_an_empty_corpus_is_an_error_and_prunes_nothing(self, bench: Bench) -> None:
        bench.ingest()
        held = bench.sets(), bench.points()
        bench.write([])
        with raises(CorpusError, bench.manifest):
            bench.ingest(prune=lambda gone: pytest.fail("nobody is asked"))
        assert (bench.sets(), bench.points()) == held

    def test_another_collection_of_the_set_loses_them_at_its_next_push(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.ingest()
        embedding_set = EmbeddingSet.open(bench.world.home / "sets" / SET)
        bench.world.push(embedding_set, collection="beside")
        bench.write(bench.pairs[:20])
        bench.ingest(prune=lambda gone: True)
        bench.world.push(EmbeddingSet.open(embedding_set.path), collection="beside")
        assert {bench.world.store.count(name) for name in bench.world.store.collections()} == {60}

    @pytest.mark.slow
    def test_what_comes_back_is_written_again(self, bench: Bench) -> None:
        bench.ingest()
        bench.write(bench.pairs[:20])
        bench.ingest(prune=lambda gone: True)
        bench.write(bench.pairs)
        bench.ingest(prune=lambda gone: True)
        assert len(bench.keys("image")) == N

    @pytest.mark.parametrize(
        ("where", "method", "number"),
        slow_unless(
            lambda case: case in (("writer", "drop", 1), ("store", "flush", 0), ("ledger", "write", 0)),
            [
                ("ledger", "add_tombstones", 0),
                ("ledger", "add_tombstones", 1),
                ("writer", "drop", 0),
                ("writer", "drop", 1),
                ("writer", "finish", 0),
                ("store", "delete", 0),
                ("store", "flush", 0),
                ("ledger", "remove_tombstones", 0),
                ("ledger", "write", 0),
            ],
        ),
    )
    def test_a_failure_anywhere_is_mended_by_the_next_run(
        self,
        make: Callable[..., Bench],
        templates: Mapping[str, tuple[Path, Outcome]],
        pruned: Any,
        monkeypatch: pytest.MonkeyPatch,
        where: str,
        method: str,
        number: int,
    ) -> None:
        bench = make(copy_of=templates["cosine"][0])
        bench.write([*bench.pairs[:5], *bench.pairs[9:]])
        with monkeypatch.context() as patched:
            arm(bench, patched, where, method, number, ProvenanceError("gone"))
            with pytest.raises(ProvenanceError):
                bench.ingest(prune=lambda gone: True)
        bench.ingest(prune=lambda gone: True)
        assert bench.everything() == pruned
