"""Deleting by key, by group and by filter, and equal to an undisturbed deletion whatever fails."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import CollectionNotFoundError, ProvenanceError
from connector.push.delete import DeletionPreview
from connector.releases import verify as verification
from connector.stores.filters import parse_filter
from tests.support.errors import raises
from tests.support.fakes import Pair
from tests.support.ingesting import SET, Bench, N, Outcome, arm
from tests.support.slow import slow_unless
from tests.support.sparse_copy import copy_sparse
from tests.support.world import COLLECTION, KINDS, LIVE, opened_world

pytestmark = pytest.mark.usefixtures("in_small_steps")


@pytest.fixture(scope="module")
def deletion(
    request: pytest.FixtureRequest,
    drawn: tuple[Path, list[Pair]],
    templates: Mapping[str, tuple[Path, Outcome]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Outcome]:
    """Options of a deletion, and what it leaves behind where nothing disturbs it."""
    directory, pairs = drawn
    group = pairs[2].group
    condition = parse_filter(json.dumps({"must": [{"key": "group", "match": {"value": group}}]}))
    keys = [group, f"{group}#0", f"{group}#1"]
    by: dict[str, dict[str, Any]] = {
        "key": {"keys": keys},
        "group": {"groups": [group]},
        "filter": {"filter": condition},
    }
    options = by[request.param]
    home = copy_sparse(templates["cosine euclid"][0], tmp_path_factory.mktemp("deleted") / "home")
    with opened_world("edge", home) as world:
        bench = Bench(world, pairs, directory / "deleted.jsonl")
        bench.delete(**options)
        return options, bench.outcome()


class TestDelete:
    @pytest.fixture(params=[*KINDS, *LIVE])
    def bench(self, request: pytest.FixtureRequest, make: Callable[..., Bench]) -> Bench:
        return make(request.param)

    @pytest.mark.slow
    def test_by_key(self, bench: Bench) -> None:
        bench.ingest(metrics=["cosine", "chi2"])
        key = bench.pairs[7].key
        said: list[DeletionPreview] = []

        def agree(doomed: DeletionPreview) -> bool:
            said.append(doomed)
            return True

        run = bench.delete(keys=[key, f"{key}#1", "unknown"], confirm=agree)
        assert said == [DeletionPreview(2, [SET], COLLECTION, [])]
        assert (run.counts["deleted"], run.counts["rows_deleted"]) == (2, 2)
        assert run.counts["points_deleted"] == 2 * 2  # in the releases of two metrics
        sets, points, written, _, states = bench.everything()
        assert sets[SET][1] == {"image": N - 1, "text": 2 * N - 1}
        assert written == 2 * (3 * N - 2)
        assert set(states.values()) == {("live", 3 * N - 2)}
        assert all(
            payload["key"] not in (key, f"{key}#1")
            for of in points.values()
            for p in of["image"].values()
            for payload in [p[1]]
        )
        again = bench.world.push(EmbeddingSet.open(bench.world.home / "sets" / SET), metrics=["cosine", "chi2"])
        assert again.counts == {"unchanged": 2 * (3 * N - 2)}

    @pytest.mark.slow
    def test_of_one_modality(self, bench: Bench) -> None:
        bench.ingest()
        bench.delete(keys=[bench.pairs[0].key, f"{bench.pairs[0].key}#0"], modalities=["text"])
        assert len(bench.keys("image")) == N
        assert len(bench.keys("text")) == 2 * N - 1

    @pytest.mark.slow
    def test_by_filter(self, bench: Bench) -> None:
        bench.ingest()
        group = bench.pairs[2].group
        condition = parse_filter(json.dumps({"must": [{"key": "group", "match": {"value": group}}]}))
        assert bench.delete(filter=condition).counts["deleted"] == 3
        assert bench.pairs[2].key not in bench.keys("image")
        assert bench.everything()[2] == 3 * N - 3

    @pytest.mark.slow
    def test_no_means_no(self, bench: Bench) -> None:
        bench.ingest()
        before = bench.everything()
        bench.delete(keys=[bench.pairs[0].key], confirm=lambda doomed: False)
        assert bench.everything() == before

    @pytest.mark.slow
    def test_what_is_not_there(self, bench: Bench) -> None:
        bench.ingest()
        before = bench.everything()
        assert bench.delete(keys=["unknown"], confirm=lambda doomed: pytest.fail("asked")).counts["deleted"] == 0
        assert bench.everything() == before

    def test_a_collection_that_there_is_not(self, bench: Bench) -> None:
        with raises(CollectionNotFoundError, "'things'"):
            bench.delete(keys=["a"])

    @pytest.mark.slow
    def test_retired_releases_and_other_collections_of_the_set_lose_it_too(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.ingest()
        bench.world.alignment("b", turn=1)
        embedding_set = EmbeddingSet.open(bench.world.home / "sets" / SET)
        (retired,) = bench.world.push(embedding_set, "b").releases
        retired.row.state = "retired"
        bench.world.provenance.releases.save(retired.row)
        bench.world.push(embedding_set, collection="beside")
        assert sorted(state for state, _ in bench.world.states().values()) == ["live", "live", "retired"]
        bench.delete(keys=[bench.pairs[0].key])
        assert {bench.world.store.count(name) for name in bench.world.store.collections()} == {3 * N - 1}
        assert sorted(bench.world.states().values()) == [("live", 3 * N - 1)] * 2 + [("retired", 3 * N - 1)]
        verification.verify(retired, bench.world.store, bench.world.provenance, seed=0)  # a rollback may return to it

    @pytest.mark.parametrize(
        ("deletion", "where", "method", "number"),
        slow_unless(
            lambda case: (
                case[:3]
                in {
                    ("key", "store", "ready"),
                    ("group", "store", "delete"),
                    ("filter", "store", "retrieve"),
                    ("key", "ledger", "add_tombstones"),
                    ("key", "writer", "drop"),
                    ("key", "artifacts", "record_set"),
                    ("key", "ledger", "remove_tombstones"),
                }
            ),
            [
                ("key", "ledger", "add_tombstones", 1),
                ("key", "writer", "drop", 1),
                ("key", "writer", "finish", 0),
                ("key", "artifacts", "record_set", 0),
                ("key", "store", "delete", 0),
                ("key", "ledger", "remove_tombstones", 0),
                ("key", "store", "ready", 0),
                # What a group or a filter finds is fewer after each step.
                ("group", "ledger", "add_tombstones", 1),
                ("group", "writer", "drop", 1),
                ("group", "store", "delete", 1),
                ("group", "ledger", "remove_tombstones", 0),
                ("filter", "ledger", "add_tombstones", 0),
                ("filter", "writer", "drop", 0),
                ("filter", "store", "flush", 0),
                ("filter", "store", "delete", 1),
                ("filter", "store", "retrieve", 2),  # points that stay are read, and none is written
                ("filter", "ledger", "write", 0),
            ],
        ),
        indirect=["deletion"],
    )
    def test_a_failure_anywhere_is_mended_by_the_same_command(
        self,
        make: Callable[..., Bench],
        templates: Mapping[str, tuple[Path, Outcome]],
        deletion: tuple[dict[str, Any], Outcome],
        monkeypatch: pytest.MonkeyPatch,
        where: str,
        method: str,
        number: int,
    ) -> None:
        bench, (options, undisturbed) = make(copy_of=templates["cosine euclid"][0]), deletion
        with monkeypatch.context() as patched:
            arm(bench, patched, where, method, number, ProvenanceError("gone"))
            with suppress(ProvenanceError):  # a filter that finds nothing any more comes by fewer places
                bench.delete(**options)
        bench.delete(**options)
        assert bench.outcome() == undisturbed
