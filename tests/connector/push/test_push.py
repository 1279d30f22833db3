"""Pushing embedding sets into releases: exact, idempotent, and equal to an undisturbed push whatever goes wrong."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt
import pytest

from alignment.errors import MetricError, VectorError, WeightsError
from alignment.metrics import METRICS, Distance, Guarantee, parse
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.model.projections import Projection
from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from connector.errors import (
    CollectionNotFoundError,
    EmptyReleaseError,
    FilterError,
    MismatchError,
    StoreUnavailableError,
)
from connector.push import batches as pushing
from connector.releases.aliases import alias_name
from connector.releases.aligned_payload import ALIGNED, unpacked
from connector.releases.chain import METADATA, chain
from connector.releases.reconcile import reconcile
from connector.releases.release import Release, open_release
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.filters import parse_filter
from connector.stores.layout import PayloadKind
from connector.stores.payload_kinds import check_kinds
from connector.stores.points import Points
from tests.support.errors import raises
from tests.support.world import (
    ALL,
    COLLECTION,
    DIMS,
    KINDS,
    LATENT,
    SOME,
    Calls,
    World,
    alignment,
    cards,
    embedded,
    latent,
    learned,
    maps,
    only,
    opened_world,
    pairs,
    points_of,
    rows,
    scores,
    stored,
    vectors_of,
    world_over,
    write_set,
)

NAMESPACE = UUID(
    "6f1d3f0e-6c86-5a49-9d0c-0f3d8a7c1b52"
)  # never to be changed: every id of every collection hangs on it


world = world_over(*KINDS)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows a batch, and lines in the ledger after every sixteen points."""
    monkeypatch.setattr(pushing, "BATCH_POINTS", 4)
    monkeypatch.setattr(pushing, "WRITE_POINTS", 4)
    monkeypatch.setattr(pushing, "FLUSH_POINTS", 16)


def point(modality: Modality, key: str) -> str:
    return str(uuid5(NAMESPACE, f"{modality}\0{key}"))


@pytest.fixture(scope="module", params=KINDS)
def under_all(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with releases under every metric that no test changes."""
    with opened_world(request.param, tmp_path_factory.mktemp("world")) as opened:
        opened.alignment()
        opened.push(opened.set("s", *pairs(20, noise=0.1)), metrics=ALL)
        yield opened


class TestWhatIsWritten:
    def test_every_row_is_a_point_under_the_uuid_of_modality_and_key(self, world: World) -> None:
        pushed = world.push(world.set("s", *pairs(30)))
        (release,) = pushed.releases
        expected = {point(modality, str(number)) for modality in MODALITIES for number in range(30)}
        assert set(stored(world.store, release.name, "image")) == expected
        assert pushed.counts == {"written": 60}
        assert release.name == f"{COLLECTION}.cosine.{alignment().fingerprint[:8]}"

    def test_the_payload_is_the_corpus_with_what_identifies_the_row(self, world: World) -> None:
        image, text = pairs(6)
        payload = {"caption": "a \u201cred\u201d car \U0001f697", "tags": ["a", "b"], "year": 2**62, "null": None}
        text.payloads[2] = json.dumps(payload)
        (release,) = world.push(world.set("s", image, text)).releases
        held_out = release.alignment.card.hold_out.held_out(text.groups)
        found = stored(world.store, release.name, "text")
        assert found[point("text", "2")][1] == {
            **payload,
            "key": "2",
            "group": "2",
            "modality": "text",
            "content_sha256": text.content_sha256[2],
            "split": "held-out" if held_out[2] else "fitted",
        }

    def test_the_split_is_that_of_the_alignments_hold_out(self, world: World) -> None:
        hold_out = HoldOut(0.4, seed=3)
        world.alignment("b", hold_out=hold_out)
        image, text = pairs(40)
        (release,) = world.push(world.set("s", image, text), "b").releases
        split = {payload["key"]: payload["split"] for _, payload in stored(world.store, release.name, "image").values()}
        held = {key for key, is_held in zip(image.keys, hold_out.held_out(image.groups), strict=True) if is_held}
        assert {key for key, side in split.items() if side == "held-out"} == held
        assert 0 < len(held) < 40
        assert set(split.values()) == {"held-out", "fitted"}

    def test_a_point_carries_the_vector_of_its_modality_and_no_other(self, world: World) -> None:
        (release,) = world.push(world.set("s", *pairs(5))).releases
        for modality in MODALITIES:
            for vector, payload in stored(world.store, release.name, modality).values():
                assert (vector is not None) == (payload["modality"] == modality)

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", ALL)
    def test_vectors_are_the_alignments_projection_lowered(self, under_all: World, metric: str) -> None:
        parts, ours = pairs(20, noise=0.1), alignment()
        release = open_release(under_all.provenance, under_all.store, COLLECTION, metric)
        for part in parts:
            lowering = ours.metric(parse(metric), items=part.modality).lower(LATENT)
            aligned = ours.project(part.modality, part.vectors)
            keys, _, found = vectors_of(under_all.store, release.name, part.modality)
            order = [part.keys.index(key) for key in keys]
            assert found.shape == (20, lowering.dim)
            np.testing.assert_allclose(found, lowering.item(aligned)[order], atol=1e-6)
            if lowering.distance is Distance.COSINE:
                np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)

    @pytest.mark.parametrize("metric", ALL)
    def test_what_is_rescored_carries_its_aligned_vector(self, under_all: World, metric: str) -> None:
        parts, ours = pairs(20, noise=0.1), alignment()
        release = open_release(under_all.provenance, under_all.store, COLLECTION, metric)
        assert release.guarantee is ours.metric(parse(metric), items="image").lower(LATENT).guarantee
        for part in parts:
            aligned = ours.project(part.modality, part.vectors)
            found = stored(under_all.store, release.name, part.modality)
            payloads = [found[point(part.modality, key)][1] for key in part.keys]
            if release.guarantee is Guarantee.EXACT:
                assert not any(ALIGNED in payload for payload in payloads)
            else:
                np.testing.assert_array_equal(unpacked([payload[ALIGNED] for payload in payloads]), aligned)

    def test_the_chain_is_the_same_in_collection_sql_and_artifact(self, world: World) -> None:
        (release,) = world.push(world.set("s", *pairs(4)), metrics=["euclid"]).releases
        ours = alignment()
        metadata = world.store.describe(release.name).metadata[METADATA]
        assert metadata == {
            "image_encoder": {"spec": "fake-image:small", "fingerprint": cards()["image"].fingerprint},
            "text_encoder": {"spec": "fake-text:small", "fingerprint": cards()["text"].fingerprint},
            "alignment": ours.fingerprint,
            "metric": "euclid",
            "lowering": {"distance": "Euclid", "dim": LATENT, "version": 1, "guarantee": "exact"},
        }
        (row,) = world.provenance.releases.find()
        recorded = world.provenance.artifacts.alignment(row.alignment_id)
        assert (row.metric, row.distance, row.dim, row.lowering_version) == ("euclid", "Euclid", LATENT, 1)
        assert (row.collection, row.physical_name, row.state, row.points) == (COLLECTION, release.name, "live", 8)
        assert recorded.fingerprint == metadata["alignment"]
        assert recorded.card["encoders"]["text"]["fingerprint"] == metadata["text_encoder"]["fingerprint"]

    @pytest.mark.usefixtures("small_batches")
    def test_the_ledger_adds_up_to_the_exact_count(self, world: World) -> None:
        (release,) = world.push(world.set("s", *pairs(11))).releases
        ledger = {(shard, start): points for (_, shard, start), (points, _) in world.ledger().items()}
        assert ledger == {
            (f"{modality}-000000.parquet", start): points
            for modality in MODALITIES
            for start, points in ((0, 4), (4, 4), (8, 3))
        }
        assert sum(ledger.values()) == world.store.count(release.name) == 22
        assert len({digest for _, digest in world.ledger().values()}) == 6

    @pytest.mark.usefixtures("small_batches")
    def test_the_ledger_is_written_after_the_points_are_durable(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []
        for owner, method in (
            (world.store, "upsert"),
            (world.store, "flush"),
            (world.provenance.ledger, "write"),
        ):
            original = getattr(owner, method)

            def noted(*args: Any, _original: Any = original, _method: str = method, **options: Any) -> Any:
                result = _original(*args, **options)
                order.append(_method)
                return result

            monkeypatch.setattr(owner, method, noted)
        world.push(world.set("s", *pairs(20)))
        assert order == [*["upsert"] * 4, "flush", "write"] * 2 + [*["upsert"] * 2, "flush", "write"]

    @pytest.mark.slow
    def test_the_live_alias_names_the_collection(self, world: World) -> None:
        releases = world.push(world.set("s", *pairs(4)), metrics=ALL).releases
        assert world.store.aliases() == {
            alias_name(COLLECTION, parse(metric)): r.name for metric, r in zip(ALL, releases, strict=True)
        }
        assert {state for state, _ in world.states().values()} == {"live"}

    def test_a_set_of_one_modality_is_pushed(self, world: World) -> None:
        _, text = pairs(4)
        embedding_set = world.set("s", text, encoders={"text": cards()["text"]})
        (release,) = world.push(embedding_set).releases
        assert set(stored(world.store, release.name, "text")) == {point("text", key) for key in text.keys}

    @pytest.mark.slow
    def test_several_metrics_share_one_projection_of_every_batch(
        self, world: World, small_batches: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        original = Projection.unchecked

        def spied(self: Projection, X: Any) -> Any:
            seen.append(len(X))
            return original(self, X)

        embedding_set = world.set("s", *pairs(10))
        monkeypatch.setattr(Projection, "unchecked", spied)
        pushed = world.push(embedding_set, metrics=SOME)
        written, tuning = seen[:6], seen[6:]  # releases are tuned by the ten captions at once
        assert (written, set(tuning)) == ([4, 4, 2, 4, 4, 2], {10})
        assert pushed.counts == {"written": 20 * len(SOME)}
        assert [world.store.count(release.name) for release in pushed.releases] == [20] * len(SOME)

    def test_payload_indexes_are_recorded_with_the_release(self, world: World) -> None:
        (release,) = world.push(world.set("s", *pairs(3)), payload_indexes={"number": "integer"}).releases
        assert release.row.settings["payload_indexes"] == {
            "key": "keyword",
            "group": "keyword",
            "split": "keyword",
            "number": "integer",
        }


class TestAgain:
    @pytest.mark.slow
    def test_pushing_again_writes_nothing_and_changes_nothing(
        self, world: World, small_batches: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedding_set = world.set("s", *pairs(10))
        world.push(embedding_set, metrics=SOME)
        before, rows_before = world.snapshot(), [row.updated_at for row in world.provenance.releases.find()]
        upserts, switches = (Calls(monkeypatch, world.store, method) for method in ("upsert", "set_aliases"))
        again = world.push(embedding_set, metrics=SOME)
        assert (len(upserts), len(switches)) == (0, 0)
        assert again.counts == {"unchanged": 20 * len(SOME)}
        assert world.snapshot() == before
        assert [row.updated_at for row in world.provenance.releases.find()] == rows_before

    @pytest.mark.slow
    def test_a_metric_that_is_added_later_is_the_only_one_written(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedding_set = world.set("s", *pairs(10))
        world.push(embedding_set)
        upserts = Calls(monkeypatch, world.store, "upsert")
        both = world.push(embedding_set, metrics=["cosine", "dot"])
        assert both.counts == {"written": 20, "unchanged": 20}
        assert {name for name, _ in upserts.arguments} == {both.releases[1].name}

    def test_of_a_changed_set_only_what_changed_is_written(
        self, world: World, small_batches: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image, text = pairs(10)
        world.push(world.set("s", image, text))
        text.payloads[5] = json.dumps({"number": "another"})
        new_image, _ = pairs(3, seed=5, prefix="new-")
        changed = world.set("s", image, text, new_image)
        upserts = Calls(monkeypatch, world.store, "upsert")
        pushed = world.push(changed)
        (release,) = pushed.releases
        written = [(points.vector_name, list(points.ids)) for _, points in upserts.arguments]
        assert written == [
            ("image", [point("image", key) for key in new_image.keys]),
            ("text", [point("text", "5")]),
        ]
        assert pushed.counts == {"written": 4, "unchanged": 19}
        assert stored(world.store, release.name, "text")[point("text", "5")][1]["number"] == "another"
        assert world.store.count(release.name) == sum(points for points, _ in world.ledger().values()) == 23
        assert world.states()[release.name] == ("live", 23)

    @pytest.mark.slow
    def test_a_row_that_moved_to_a_newer_shard_is_counted_once(self, world: World, small_batches: None) -> None:
        image, text = pairs(10)
        world.push(world.set("s", image, text))
        moved = rows("image", embedded("image", latent(1, seed=9)), keys=["3"])
        kept = image.take([row for row in range(10) if row != 3])
        pushed = world.push(world.set("s", kept, moved, text))
        (release,) = pushed.releases
        assert world.store.count(release.name) == sum(points for points, _ in world.ledger().values()) == 20
        keys, _, vectors = vectors_of(world.store, release.name, "image")
        np.testing.assert_allclose(vectors[keys.index("3")], alignment().project("image", moved.vectors)[0], atol=1e-6)
        fresh = write_set(world.home / "sets" / "fresh", [kept, moved, text])
        world.push(fresh, collection="fresh")
        fresh_name = f"fresh.cosine.{alignment().fingerprint[:8]}"
        assert stored(world.store, release.name, "image") == stored(world.store, fresh_name, "image")

    @pytest.mark.parametrize("metric", ["cosine", "chi2"])
    def test_rows_that_move_up_in_their_shard_are_not_written_again(
        self, world: World, small_batches: None, monkeypatch: pytest.MonkeyPatch, metric: str
    ) -> None:
        image, text = pairs(10)
        world.push(world.set("s", image, text), metrics=[metric])
        moved = rows("image", embedded("image", latent(1, seed=9)), keys=["3"])
        changed = world.set("s", image.take([row for row in range(10) if row != 3]), moved, text)
        upserts = Calls(monkeypatch, world.store, "upsert")
        pushed = world.push(changed, metrics=[metric])
        written = [id_ for _, points in upserts.arguments for id_ in points.ids]
        assert written == [point("image", "3")]
        assert pushed.counts == {"written": 1, "unchanged": 19}

    def test_a_vector_that_differs_under_the_same_payload_is_written(self, world: World, small_batches: None) -> None:
        image, text = pairs(10)
        world.push(world.set("s", image, text))
        other = replace(image, vectors=image.vectors[::-1].copy())
        (release,) = world.push(world.set("s", other, text)).releases
        keys, _, vectors = vectors_of(world.store, release.name, "image")
        aligned = alignment().project("image", other.vectors)
        np.testing.assert_allclose(vectors, aligned[[other.keys.index(key) for key in keys]], atol=1e-6)

    def test_ledger_lines_of_rows_that_left_the_set_go(self, world: World, small_batches: None) -> None:
        image, text = pairs(8)
        moved = image.take(range(4, 8))
        world.push(world.set("s", image, text))
        world.push(world.set("s", image.take(range(4)), moved, text))
        places = sorted((shard, start) for _, shard, start in world.ledger())
        assert places == [
            ("image-000000.parquet", 0),
            ("image-000001.parquet", 0),
            ("text-000000.parquet", 0),
            ("text-000000.parquet", 4),
        ]

    def test_two_sets_live_in_one_collection(self, world: World) -> None:
        first, second = world.set("first", *pairs(5)), world.set("second", *pairs(4, seed=3, prefix="second-"))
        world.push(first)
        (release,) = world.push(second).releases
        assert world.store.count(release.name) == 18
        assert world.push(first).counts == {"unchanged": 10}
        assert world.states() == {release.name: ("live", 18)}

    @pytest.mark.slow
    def test_another_split_of_the_same_projection_is_written(self, world: World) -> None:
        """Who holds out other groups is another alignment, though it projects alike, and has another release."""
        embedding_set = world.set("s", *pairs(20))
        world.push(embedding_set)
        only(alignment(), hold_out=HoldOut(0.9)).save(world.home / "alignments" / "b")
        (release,) = world.push(embedding_set, "b").releases
        held = HoldOut(0.9).held_out([str(n) for n in range(20)])
        found = stored(world.store, release.name, "image")
        assert [found[point("image", str(n))][1]["split"] == "held-out" for n in range(20)] == held.tolist()


class TestTexts:
    """A CSV holds texts alone: a field is what its index says that it is."""

    INDEXES: ClassVar[dict[str, PayloadKind]] = {
        "year": "integer",
        "price": "float",
        "sold": "bool",
        "size": "keyword",
    }
    ROWS: ClassVar[list[dict[str, str]]] = [
        {"year": "1999", "price": "-0.5", "sold": "true", "size": "42", "note": "7"},
        {"year": "-3", "price": "1e3", "sold": "False", "size": "true", "note": "7"},
        {"year": "2024", "price": "7", "sold": "TRUE", "size": "1.5"},
        {},
    ]
    TYPED: ClassVar[list[dict[str, Any]]] = [
        {"year": 1999, "price": -0.5, "sold": True, "size": "42", "note": "7"},
        {"year": -3, "price": 1000.0, "sold": False, "size": "true", "note": "7"},
        {"year": 2024, "price": 7.0, "sold": True, "size": "1.5"},
        {},
    ]

    FILTERS: ClassVar[dict[str, list[str]]] = {
        '{"key": "year", "range": {"gte": 1999, "lt": 2024}}': ["0"],
        '{"key": "year", "range": {"lt": 2000}}': ["0", "1"],
        '{"key": "year", "match": {"value": 2024}}': ["2"],
        '{"key": "price", "range": {"gt": -1, "lte": 7}}': ["0", "2"],
        '{"key": "price", "range": {"gt": 999.5}}': ["1"],
        '{"key": "sold", "match": {"value": true}}': ["0", "2"],
        '{"key": "sold", "match": {"value": false}}': ["1"],
        '{"key": "size", "match": {"any": ["42", "true"]}}': ["0", "1"],
    }

    BAD_TEXTS: ClassVar[list[tuple[str, str]]] = [
        ("year", "1.5"),
        ("year", ""),
        ("year", "MCMXCIX"),
        ("year", "1_000"),
        ("year", f"{2**63}"),
        ("year", f"{-(2**63) - 1}"),
        ("price", "1_000.5"),
        ("price", "cheap"),
        ("price", "nan"),
        ("price", "-inf"),
        ("price", "1e999"),
        ("price", "1,5"),
        ("sold", "yes"),
        ("sold", "1"),
    ]
    BAD_VALUES: ClassVar[list[tuple[str, Any]]] = [
        ("year", 4.5),
        ("year", True),
        ("year", [1, 2.5]),
        ("price", True),
        ("price", {}),
        ("sold", 0),
        ("size", 5),
    ]

    def given(self, world: World, payloads: Sequence[Mapping[str, Any]]) -> EmbeddingSet:
        return world.set("s", rows("image", embedded("image", latent(len(payloads))), payloads=payloads))

    def found(self, world: World, release: Release, condition: str) -> list[str]:
        query = release.lowerings["image"].query(latent(1).astype(np.float32))
        asked = parse_filter(f'{{"must": [{condition}]}}')
        (hits,) = world.store.search(release.name, "image", query, 10, filter=asked)
        return sorted(hit.payload["key"] for hit in hits)

    def test_they_are_stored_as_the_kind_of_their_index(self, world: World) -> None:
        (release,) = world.push(self.given(world, self.ROWS), payload_indexes=self.INDEXES).releases
        written = stored(world.store, release.name, "image")
        for number, expected in enumerate(self.TYPED):
            payload = written[point("image", str(number))][1]
            found = {name: payload[name] for name in (*self.INDEXES, "note") if name in payload}
            assert found == expected
            assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in expected.items()}

    def test_filters_find_them(self, world: World) -> None:
        embedding_set = self.given(world, self.ROWS)
        (typed,) = world.push(embedding_set, payload_indexes=self.INDEXES).releases
        (plain,) = world.push(embedding_set, collection="plain").releases
        for condition, expected in self.FILTERS.items():
            assert self.found(world, typed, condition) == expected
            assert self.found(world, plain, condition) == (expected if "size" in condition else [])

    def test_what_has_a_type_keeps_it(self, world: World) -> None:
        payloads: list[dict[str, Any]] = [
            {"year": 3, "price": 4, "sold": True, "size": "5"},
            {"year": [3, 4], "sold": None, "size": ["1", "2"]},
        ]
        pushed = world.push(self.given(world, payloads), payload_indexes=self.INDEXES)
        written = stored(world.store, pushed.releases[0].name, "image")
        for number, expected in enumerate(payloads):
            payload = written[point("image", str(number))][1]
            assert {name: payload[name] for name in expected} == expected
        assert pushed.counts == {"written": 2}

    def test_a_text_of_another_kind_is_a_reject(self, world: World) -> None:
        payloads = [self.ROWS[0], *({**self.ROWS[1], name: text} for name, text in self.BAD_TEXTS), self.ROWS[2]]
        embedding_set = self.given(world, payloads)
        pushed = world.push(embedding_set, payload_indexes=self.INDEXES)
        (release,) = pushed.releases
        rejects = {reject.key: reject for reject in world.provenance.runs.rejects(pushed.run)}
        written = stored(world.store, release.name, "image")
        assert len(rejects) == len(self.BAD_TEXTS)
        for number, (name, text) in enumerate(self.BAD_TEXTS, start=1):
            reject, kind = rejects[str(number)], self.INDEXES[name]
            assert (reject.modality, reject.reason) == ("image", f"payload-not-{kind}")
            assert reject.detail.startswith(f"{name} is indexed as {kind}, got the text {text!r}")
            assert (reject.stage, reject.position) == ("write", number + 1)
            payload = written[point("image", str(number))][1]
            assert payload.keys() & self.ROWS[1].keys() == self.ROWS[1].keys() - {name}  # the item is kept without it
        assert pushed.counts == {"written": len(payloads), "rejected": len(self.BAD_TEXTS)}
        assert world.push(embedding_set).counts == {"unchanged": len(payloads)}
        assert reconcile(release, world.store, world.provenance, seed=0).consistent

    def test_a_value_of_another_kind_is_a_reject_as_a_text_is(self, world: World) -> None:
        payloads = [self.ROWS[0], *({**self.ROWS[1], name: value} for name, value in self.BAD_VALUES)]
        pushed = world.push(self.given(world, payloads), payload_indexes=self.INDEXES)
        reasons = {key: reason for _, key, reason in world.reasons(pushed.run)}
        assert reasons == {
            str(number): f"payload-not-{self.INDEXES[name]}"
            for number, (name, _) in enumerate(self.BAD_VALUES, start=1)
        }
        assert pushed.counts == {"written": 1 + len(self.BAD_VALUES), "rejected": len(self.BAD_VALUES)}

    def test_kinds_are_read_along_the_path_that_the_index_reads(self, world: World) -> None:
        """Nested, quoted, in lists: found by a filter, or a reject with its reason."""
        indexes: dict[str, PayloadKind] = {"meta.year": "integer", '"my year"': "integer", "t[0]": "float"}
        payloads: list[dict[str, Any]] = [
            {"meta": {"year": "1999"}, "my year": "2000", "t": ["1.5", "cheap"]},
            {"meta": {"year": "late"}},
            {"my year": 0.5},
            {"t": ["cheap"]},
            {"meta": [{"year": 1999}]},
            {"meta.year": "another field"},
        ]
        pushed = world.push(self.given(world, payloads), payload_indexes=indexes)
        (release,) = pushed.releases
        assert world.reasons(pushed.run) == [
            ("image", "1", "payload-not-integer"),
            ("image", "2", "payload-not-integer"),
            ("image", "3", "payload-not-float"),
            ("image", "4", "payload-not-integer"),
        ]
        assert self.found(world, release, '{"key": "meta.year", "match": {"value": 1999}}') == ["0"]
        assert self.found(world, release, r'{"key": "\"my year\"", "range": {"gt": 1}}') == ["0"]
        assert self.found(world, release, '{"key": "t[0]", "range": {"gt": 1}}') == ["0"]

    def test_fields_are_indexed_later_as_if_from_the_start(self, world: World) -> None:
        embedding_set = self.given(world, self.ROWS)
        (misspelt,) = world.push(embedding_set, payload_indexes={"yaer": "integer"}).releases
        (release,) = world.push(embedding_set, payload_indexes=self.INDEXES).releases
        assert release.name == misspelt.name
        assert release.row.settings["payload_indexes"].items() >= {"yaer": "integer", **self.INDEXES}.items()
        for condition, expected in self.FILTERS.items():
            assert self.found(world, release, condition) == expected
        assert reconcile(release, world.store, world.provenance, seed=0).consistent
        assert world.push(embedding_set, payload_indexes=self.INDEXES).counts == {"unchanged": len(self.ROWS)}

    def test_filters_that_end_with_a_later_index_are_named(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        embedding_set, whole = self.given(world, [{"n": 4}]), '{"key": "n", "match": {"value": 4}}'
        (release,) = world.push(embedding_set).releases
        assert self.found(world, release, whole) == ["0"]
        (again,) = world.push(embedding_set, payload_indexes={"n": "float"}).releases
        with raises(FilterError, "n", "float"):  # as a search is refused
            check_kinds(parse_filter(f'{{"must": [{whole}]}}'), again.indexes)
        (said,) = [record.getMessage() for record in caplog.records if "until it is indexed" in record.getMessage()]
        assert "payload field n with a whole number" in said

    def test_a_field_without_a_value_of_the_kind_is_not_indexed_later(self, world: World) -> None:
        """It would take the field from every item."""
        embedding_set = self.given(world, self.ROWS)
        (release,) = world.push(embedding_set).releases
        before = world.snapshot()
        with raises(MismatchError, release.name, "sold", "integer"):
            world.push(embedding_set, payload_indexes={"sold": "integer"})
        assert world.snapshot() == before

    def test_a_later_push_knows_the_kinds_without_being_told(self, world: World) -> None:
        world.push(self.given(world, self.ROWS[:1]), payload_indexes=self.INDEXES)
        (release,) = world.push(self.given(world, self.ROWS)).releases
        assert self.found(world, release, '{"key": "year", "range": {"gte": 2000}}') == ["2"]


class TestRefused:
    @pytest.mark.parametrize("payloads", [["no JSON", "[]"], []])
    def test_a_push_that_could_write_no_row_makes_nothing_live(self, world: World, payloads: list[str]) -> None:
        vectors = embedded("image", latent(len(payloads)))
        embedding_set = world.set("s", rows("image", vectors, payloads=payloads)) if payloads else world.set("s")
        with raises(EmptyReleaseError, "s", "modalign rejects 1"):
            world.push(embedding_set, payload_indexes={"year": "integer"})
        assert (world.store.collections(), world.store.aliases(), world.states()) == ([], {}, {})
        assert len(world.reasons(1)) == len(payloads)

    def test_a_live_release_stays_live_when_its_last_row_is_refused(self, world: World) -> None:
        given = rows("image", embedded("image", latent(1)), payloads=[{"year": 1999}])
        world.push(world.set("s", given), payload_indexes={"year": "integer"})
        given.payloads[0] = "no JSON"
        world.push(world.set("s", given))
        assert list(world.states().values()) == [("live", 0)]

    def test_settings_that_a_collection_was_not_created_with(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(5))
        world.push(embedding_set, payload_indexes={"n": "integer"}, indexing_threshold=50)
        world.push(embedding_set)  # asks for nothing
        world.push(embedding_set, payload_indexes={"n": "integer"}, indexing_threshold=50)
        with raises(MismatchError, "indexing_threshold", 50, 60):
            world.push(embedding_set, indexing_threshold=60)
        with raises(MismatchError, "payload_indexes", "'n': 'integer'", "'n': 'keyword'"):
            world.push(embedding_set, payload_indexes={"n": "keyword"})

    @pytest.mark.slow
    def test_quantization_that_a_collection_was_not_created_with(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(5))
        (release,) = world.push(embedding_set).releases
        with pytest.raises(
            MismatchError, match="was created with quantization None, asked for scalar; push into a new"
        ):
            world.push(embedding_set, quantization="scalar")
        settings = {name: value for name, value in release.row.settings.items() if name != "quantization"}
        release.row.settings = settings  # as of a release from before there was such a setting
        world.provenance.releases.save(release.row)
        assert world.push(embedding_set).counts == {"unchanged": 10}
        with raises(MismatchError, "quantization", None, "scalar"):
            world.push(embedding_set, quantization="scalar")
        world.push(embedding_set, collection="small", quantization="scalar")
        world.push(embedding_set, collection="small")  # asks for nothing

    def test_bad_vectors_are_rejects_on_every_run_and_the_rest_is_written(self, world: World) -> None:
        world.alignment("centred", mean=0.5)
        mean = 0.5 * maps()["text"][0]
        image, text = pairs(8)
        text.vectors[1], text.vectors[3], text.vectors[6] = np.nan, 0.0, np.inf
        # A unit vector cannot equal a mean of length 0.5, so the mean is stretched to length 1 below.
        world.alignment("on-mean", mean=1.0)
        text.vectors[4] = 3.0 * mean
        embedding_set = world.set("s", image, text)
        expected = [
            ("text", "1", "vector-not-finite"),
            ("text", "3", "vector-zero"),
            ("text", "4", "vector-not-finite"),
            ("text", "6", "vector-not-finite"),
        ]
        for _ in range(2):
            pushed = world.push(embedding_set, "on-mean")
            (release,) = pushed.releases
            assert world.reasons(pushed.run) == expected
            assert pushed.counts["rejected"] == 4
            assert set(stored(world.store, release.name, "text")) == {
                *(point("image", str(n)) for n in range(8)),
                *(point("text", str(n)) for n in (0, 2, 5, 7)),
            }
            details = {r.key: (r.detail, r.position, r.stage) for r in world.provenance.runs.rejects(pushed.run)}
            assert details["4"] == ("the embedding equals the training mean", 5, "write")
            assert details["1"] == ("the embedding cannot be aligned", 2, "write")
        # The same row is no reject where the mean is another.
        elsewhere = world.push(embedding_set, "centred", collection="other")
        assert ("text", "4", "vector-not-finite") not in world.reasons(elsewhere.run)

    def test_a_batch_with_refused_rows_is_not_written_again(
        self, world: World, small_batches: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image, text = pairs(10)
        image.vectors[2], text.vectors[9] = np.nan, 0.0
        text.payloads[5] = "[]"
        embedded = world.set("s", image, text)
        first = world.push(embedded, metrics=["cosine", "euclid"])
        assert first.counts == {"written": 2 * 17, "rejected": 3}
        before = world.snapshot()
        writing = [Calls(monkeypatch, world.store, method) for method in ("upsert", "delete", "flush")]
        again = world.push(embedded, metrics=["cosine", "euclid"])
        assert again.counts == {"unchanged": 2 * 17, "rejected": 3}
        assert [len(calls) for calls in writing] == [0, 0, 0]
        assert (
            world.reasons(again.run)
            == world.reasons(first.run)
            == [
                ("image", "2", "vector-not-finite"),
                ("text", "5", "payload-not-json"),
                ("text", "9", "vector-zero"),
            ]
        )
        assert world.snapshot() == before

    @pytest.mark.slow
    def test_however_many_batches_a_write_has_the_same_is_written_recorded_and_refused(
        self, world: World, small_batches: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows are refused before a write, and by the store in the middle of it."""
        image, text = pairs(24)
        image.vectors[2], text.vectors[9] = np.nan, 0.0
        text.payloads[5] = "[]"
        for row in (3, 6, 13):
            image.payloads[row] = json.dumps({"number": 2**70})
        embedded = world.set("s", image, text)
        left, writes = [], []
        for number, points in enumerate((1, 7, 1000)):
            monkeypatch.setattr(pushing, "WRITE_POINTS", points)
            with monkeypatch.context() as patched:
                upserts = Calls(patched, world.store, "upsert")
                pushed = world.push(embedded, metrics=["cosine", "euclid"], collection=f"c{number}")
            writes.append(len(upserts))
            rejects = [
                (r.modality, r.key, r.reason, r.position, r.detail.replace(f"c{number}.", ""))
                for r in world.provenance.runs.rejects(pushed.run)
            ]
            points_held = [
                {modality: stored(world.store, release.name, modality) for modality in MODALITIES}
                for release in pushed.releases
            ]
            prefix = f"c{number}."
            ledger = {
                (name.removeprefix(prefix), *key): entry
                for (name, *key), entry in world.ledger().items()
                if name.startswith(prefix)
            }
            left.append((pushed.counts, sorted(rejects), points_held, ledger))
        assert left[0] == left[1] == left[2]
        assert writes[0] > writes[1] > writes[2]

    @pytest.mark.parametrize("broken", ['{"a": NaN}', '{"a": -Infinity}', "{", ""])
    def test_a_payload_that_is_no_json_is_a_reject(self, world: World, broken: str) -> None:
        image, text = pairs(4)
        image.payloads[2] = broken
        pushed = world.push(world.set("s", image, text))
        assert world.reasons(pushed.run) == [("image", "2", "payload-not-json")]
        assert world.store.count(pushed.releases[0].name) == 7

    @pytest.mark.parametrize("broken", ["[1, 2]", '"text"', "3", "null"])
    def test_a_payload_that_is_no_object_is_a_reject(self, world: World, broken: str) -> None:
        image, text = pairs(4)
        image.payloads[2] = broken
        pushed = world.push(world.set("s", image, text))
        assert world.reasons(pushed.run) == [("image", "2", "payload-not-json")]

    def test_a_row_that_turned_bad_leaves_no_older_point_behind(self, world: World) -> None:
        image, text = pairs(6)
        world.push(world.set("s", image, text))
        image.vectors[2] = 0.0
        pushed = world.push(world.set("s", image, text))
        (release,) = pushed.releases
        assert world.reasons(pushed.run) == [("image", "2", "vector-zero")]
        assert point("image", "2") not in stored(world.store, release.name, "image")
        assert world.store.count(release.name) == sum(points for points, _ in world.ledger().values()) == 11

    def test_a_set_of_nothing_but_bad_rows_is_refused(self, world: World) -> None:
        image, text = (rows(m, np.zeros((3, d))) for m, d in DIMS.items())
        with raises(EmptyReleaseError, "modalign rejects 1"):
            world.push(world.set("s", image, text))
        assert len(world.reasons(1)) == 6

    @pytest.mark.parametrize("modality", MODALITIES)
    def test_a_set_of_another_encoder_is_refused_before_anything_is_made(
        self, world: World, modality: Modality
    ) -> None:
        other = {**cards(), modality: EncoderCard("other:model", "ab" * 32, DIMS[modality])}
        with pytest.raises(MismatchError) as caught:
            world.push(world.set("s", *pairs(4), encoders=other))
        assert "other:model (fingerprint abababababab" in str(caught.value)
        assert str(cards()[modality]) in str(caught.value)
        assert world.store.collections() == []
        assert world.provenance.releases.find() == []

    def test_a_checkpoint_of_the_same_name_is_another_encoder(self, world: World) -> None:
        other = {**cards(), "image": EncoderCard("fake-image:small", "cd" * 32, DIMS["image"])}
        with raises(MismatchError, "cdcdcdcdcdcd"):
            world.push(world.set("s", *pairs(4), encoders=other))

    def test_a_collection_written_with_another_chain_is_refused(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(4))
        (release,) = world.push(embedding_set).releases
        config = CollectionConfig(
            {m: VectorConfig(LATENT, release.lowerings[m].distance) for m in MODALITIES},
            metadata={
                METADATA: {**chain(release.alignment, release.metric, release.lowerings["image"]), "metric": "dot"}
            },
        )
        world.store.drop(release.name)
        world.store.create(release.name, config)
        with raises(MismatchError, "metric", "dot", "cosine"):
            world.push(embedding_set)
        assert world.store.count(release.name) == 0

    def test_a_foreign_collection_of_that_name_is_refused(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(4))
        ours = alignment()
        name = f"{COLLECTION}.cosine.{ours.fingerprint[:8]}"
        world.store.create(name, CollectionConfig({"image": VectorConfig(3, METRICS["dot"].lower(3).distance)}))
        with raises(MismatchError, "image_encoder", "fake-image:small"):
            world.push(embedding_set)


class TestWhatARefusalLeaves:
    """A push that is refused leaves nothing new behind, and everything that was there."""

    @pytest.fixture
    def histograms(self, world: World) -> npt.NDArray[np.floating]:
        """What `l1` takes (12, LATENT), with an alignment `plain` that leaves it where it is."""
        projections = {m: Projection(d, None, maps()[m].T.copy()) for m, d in DIMS.items()}
        Alignment(alignment().card, projections, learned()).save(world.home / "alignments" / "plain")
        return np.abs(latent(12)) + 0.01

    def set(self, world: World, points: npt.NDArray[np.floating], prefix: str = "") -> EmbeddingSet:
        keys = [f"{prefix}{number}" for number in range(len(points))]
        return world.set(f"s{prefix}", *(rows(m, embedded(m, points), keys=keys) for m in MODALITIES))

    def refused(self, world: World, embedding_set: EmbeddingSet, *metrics: str) -> None:
        with pytest.raises(VectorError, match="with a negative value"):
            world.push(embedding_set, "plain", metrics=metrics)

    @pytest.mark.slow
    def test_new_releases_of_several_metrics(self, world: World, histograms: npt.NDArray[np.floating]) -> None:
        self.refused(world, self.set(world, -histograms), "cosine", "js(map=l1)", "mol")
        assert (world.store.collections(), world.states()) == ([], {})
        world.push(self.set(world, histograms), "plain", metrics=["cosine", "js(map=l1)", "mol"])
        assert set(world.states().values()) == {("live", 24)}

    def test_a_new_release_beside_one_with_other_settings(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(4))
        world.push(embedding_set, metrics=["dot"])
        before = world.snapshot()
        with raises(MismatchError, "quantization", None):
            world.push(embedding_set, metrics=["cosine", "dot"], quantization="scalar")
        assert world.snapshot() == before

    def test_a_live_release(self, world: World, histograms: npt.NDArray[np.floating]) -> None:
        world.push(self.set(world, histograms), "plain", metrics=["js(map=l1)"])
        before = world.snapshot()
        self.refused(world, self.set(world, -histograms, "other"), "cosine", "js(map=l1)")
        assert world.snapshot() == before

    def test_a_release_that_is_written_in_part(
        self, world: World, histograms: npt.NDArray[np.floating], small_batches: None
    ) -> None:
        """Whether the ledger knows of its points already, or not yet."""
        for first, (points, lines) in {5: (4, 0), 11: (8, 0)}.items():
            some = histograms.copy()
            some[first:] *= -1
            self.refused(world, self.set(world, some), "js(map=l1)")
            (name,) = world.store.collections()
            assert (world.store.count(name), len(world.ledger()), world.states()) == (
                points,
                lines,
                {name: ("building", 0)},
            )
        world.push(self.set(world, histograms), "plain", metrics=["js(map=l1)"])
        assert world.states() == {name: ("live", 24)}

    def test_a_release_that_an_earlier_push_began(
        self, world: World, histograms: npt.NDArray[np.floating], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            Calls(patched, world.store, "create").fail(0, StoreUnavailableError("now"), after=True)
            with pytest.raises(StoreUnavailableError):
                world.push(self.set(world, histograms), "plain", metrics=["js(map=l1)"])
        before = world.snapshot()
        assert set(world.states().values()) == {("building", 0)}
        self.refused(world, self.set(world, -histograms), "js(map=l1)")
        assert world.snapshot() == before

    def test_a_collection_that_sql_has_lost(self, world: World, histograms: npt.NDArray[np.floating]) -> None:
        (release,) = world.push(self.set(world, histograms), "plain", metrics=["js(map=l1)"]).releases
        world.provenance.releases.delete(release.row.id)
        before = world.snapshot()["collections"]
        self.refused(world, self.set(world, -histograms), "js(map=l1)")
        assert world.snapshot()["collections"] == before

    @pytest.mark.parametrize("method", ["count", "drop"])
    def test_a_store_that_fails_meanwhile(
        self,
        world: World,
        histograms: npt.NDArray[np.floating],
        monkeypatch: pytest.MonkeyPatch,
        method: str,
    ) -> None:
        """The refusal is what is raised, and what stays is as harmless as after a kill."""
        number = {"count": 1, "drop": 0}[method]
        with monkeypatch.context() as patched:
            Calls(patched, world.store, method).fail(number, StoreUnavailableError("now"))
            self.refused(world, self.set(world, -histograms), "js(map=l1)")
        assert set(world.states().values()) == {("building", 0)}
        world.push(self.set(world, histograms), "plain", metrics=["js(map=l1)"])
        assert set(world.states().values()) == {("live", 24)}

    @pytest.mark.parametrize("metric", SOME)
    def test_a_set_of_which_nothing_can_be_written(self, world: World, metric: str) -> None:
        """Every row is a reject, and no empty release goes live in front of searches."""
        parts = [replace(part, payloads=["no JSON"] * 3) for part in pairs(3)]
        with raises(EmptyReleaseError, metric.partition("+")[0], "modalign rejects 1"):
            world.push(world.set("s", *parts), metrics=[metric])
        assert len(world.reasons(1)) == 6
        assert (world.states(), world.store.collections(), world.store.aliases()) == ({}, [], {})


class TestMetrics:
    """A metric that cannot be pushed says so, and what to do; nothing of it becomes live."""

    @pytest.mark.parametrize(
        ("metric", "remedy"),
        [
            ("bilinear", "bilinear(rank=16,blocks=8)"),
            ("mol(size=3)", "mol(components=4,size=3,sway=0.1)"),
            ("mlp", "mlp(hidden=64)"),
            ("dot+nnn", "dot+nnn(k=128,alpha=0.75)"),
            ("bilinear+nnn", "bilinear(rank=16,blocks=8)+nnn(k=128,alpha=0.75)"),
        ],
    )
    def test_one_without_parameters_in_the_alignment(self, world: World, metric: str, remedy: str) -> None:
        """Of several metrics none is begun."""
        world.alignment("plain", weights={})
        embedding_set = world.set("s", *pairs(4))
        with pytest.raises(MetricError) as caught:
            world.push(embedding_set, "plain", metrics=["cosine", metric, "dot"])
        assert str(caught.value) == (
            f"the alignment holds no parameters for metric {remedy}; fit one with `modalign fit --metric '{remedy}'`"
        )
        assert world.store.collections() == []
        assert world.provenance.releases.find() == []
        (run,) = world.provenance.runs.newest(1)
        assert run.outcome == "failed"

    def test_a_bank_that_is_too_small(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(4))
        with raises(MetricError, 200):
            world.push(embedding_set, metrics=["cosine", "dot+nnn(k=201)"])
        assert world.store.collections() == []
        assert len(world.push(embedding_set, metrics=["dot+nnn(k=200)"]).releases) == 1

    @pytest.mark.slow
    def test_vectors_that_have_no_distribution(self, world: World, small_batches: None) -> None:
        """Half of the aligned vectors have a negative coordinate: the map says so, instead of clipping them."""
        embedding_set = world.set("s", *pairs(10))
        for metric in ("chi2(map=l1)", "kl-query-item(map=l1)", "hellinger(map=l1)"):
            with pytest.raises(
                VectorError, match=r"\(map=l1.*with a negative value, .* use map=split, which takes any"
            ):
                world.push(embedding_set, metrics=[metric])
            (run,) = world.provenance.runs.newest(1)
            assert run.outcome == "failed"
            assert (world.store.collections(), world.states()) == ([], {})
        with pytest.raises(CollectionNotFoundError):
            open_release(world.provenance, world.store, COLLECTION, "chi2(map=l1)")
        pushed = world.push(embedding_set, metrics=["chi2"])
        assert pushed.counts == {"written": 20}
        assert open_release(world.provenance, world.store, COLLECTION, "chi2").row.state == "live"

    def test_vectors_that_are_distributions_already(self, world: World) -> None:
        """With an alignment that leaves them where they are, histograms are what `l1` is for."""
        histograms = np.abs(latent(12)) + 0.01
        projections = {m: Projection(d, None, maps()[m].T.copy()) for m, d in DIMS.items()}
        Alignment(alignment().card, projections).save(world.home / "alignments" / "plain")
        parts = [rows(m, embedded(m, histograms)) for m in MODALITIES]
        (release,) = world.push(world.set("s", *parts), "plain", metrics=["chi2(map=l1)"]).releases
        assert release.row.state == "live"
        assert world.store.count(release.name) == 24

    def test_weights_that_have_diverged(self, world: World) -> None:
        """Every number of them is finite, and what they make of an item is not."""
        name = "mol(components=4,size=64,sway=0.1)/item"
        weights = {**learned(), name: np.full_like(learned()[name], 3e38)}
        world.alignment("diverged", weights=weights)
        with raises(WeightsError, "metric mol("):
            world.push(world.set("s", *pairs(4)), "diverged", metrics=["mol"])
        assert (world.store.collections(), world.states()) == ([], {})

    @pytest.mark.parametrize("metric", ["chi2", "mlp"])
    def test_a_release_of_a_collection_without_the_vectors_that_are_rescored(self, world: World, metric: str) -> None:
        """One that was written under another guarantee is not written into."""
        embedding_set = world.set("s", *pairs(4))
        (release,) = world.push(embedding_set, metrics=[metric]).releases
        lowering = release.lowerings["image"]
        expected = chain(release.alignment, release.metric, lowering)
        expected["lowering"] = {**expected["lowering"], "guarantee": "exact"}
        vector = VectorConfig(lowering.dim, lowering.distance)
        world.store.drop(release.name)
        world.store.create(
            release.name, CollectionConfig(dict.fromkeys(MODALITIES, vector), metadata={METADATA: expected})
        )
        with pytest.raises(
            MismatchError, match=r"was written with lowering .*'guarantee': 'exact'.* push .* into a new"
        ):
            world.push(embedding_set, metrics=[metric])

    def test_one_release_for_each_printed_form(self, world: World) -> None:
        pushed = world.push(world.set("s", *pairs(4)), metrics=["chi2(map=softmax)", "chi2", "js"])
        assert [release.row.metric for release in pushed.releases] == [
            "chi2(map=softmax)",
            "chi2(map=split)",
            "js(map=split)",
        ]
        assert sorted(world.store.aliases()) == [
            f"{COLLECTION}.{name}" for name in ("chi2-map-softmax", "chi2-map-split", "js-map-split")
        ]


class TestBehindTheLedgersBack:
    def test_points_that_were_deleted_are_written_again(self, world: World, small_batches: None) -> None:
        embedding_set = world.set("s", *pairs(10))
        (release,) = world.push(embedding_set).releases
        before = world.snapshot()
        world.store.delete(release.name, [point("image", "2"), point("text", "9")])
        pushed = world.push(embedding_set)
        assert world.snapshot() == before
        assert pushed.counts == {"written": 2, "unchanged": 18}

    @pytest.mark.slow
    def test_only_the_set_that_lost_points_needs_to_be_pushed_again(self, world: World) -> None:
        first, second = world.set("first", *pairs(5)), world.set("second", *pairs(4, seed=3, prefix="second-"))
        world.push(first)
        (release,) = world.push(second).releases
        before = world.snapshot()
        world.store.delete(release.name, [point("text", "second-1")])
        with raises(MismatchError, 17, 18):
            world.push(first)
        world.push(second)
        assert world.snapshot() == before

    def test_foreign_points_are_a_mismatch(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(5))
        (release,) = world.push(embedding_set).releases
        vectors = np.eye(LATENT, dtype=np.float32)[:2]
        world.store.upsert(release.name, Points("image", points_of(2), vectors, [{}, {}]))
        with raises(MismatchError, 12, 10):
            world.push(embedding_set)

    def test_a_collection_that_was_dropped_is_rebuilt(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(5))
        (release,) = world.push(embedding_set).releases
        before = world.snapshot()
        world.store.drop(release.name)
        pushed = world.push(embedding_set)
        assert pushed.counts == {"written": 10}
        assert world.snapshot() == before

    def test_a_collection_is_adopted_when_sql_was_lost(
        self, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        embedding_set = world.set("s", *pairs(5))
        (release,) = world.push(embedding_set).releases
        before = world.snapshot()
        (tmp_path / "lost").mkdir()
        lost = World(tmp_path / "lost", world.store)
        lost.alignment()
        drops = Calls(monkeypatch, world.store, "drop")
        with lost.provenance:
            pushed = lost.push(lost.set("s", *pairs(5)), take_over=True)
            assert lost.snapshot() == before
            assert open_release(lost.provenance, lost.store, COLLECTION).name == release.name
        assert pushed.counts == {"written": 10}
        assert len(drops) == 0  # it may be live: searches go on meanwhile

    def test_an_empty_collection_of_an_unfinished_push_is_taken_as_it_is(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its layout is recorded, so it is whole."""
        embedding_set = world.set("s", *pairs(5))
        upserts = Calls(monkeypatch, world.store, "upsert")
        upserts.fail(0, StoreUnavailableError("now"))
        with pytest.raises(StoreUnavailableError):
            world.push(embedding_set)
        creations = Calls(monkeypatch, world.store, "create")
        world.push(embedding_set)
        assert len(creations) == 0


class TestFailures:
    """A store that fails anywhere: the same push again ends where an undisturbed one does."""

    # Two metrics, two modalities, three batches of ten rows; flushes when sixteen points are pending, and at the end.
    CALLS: ClassVar = {"create": 2, "upsert": 12, "flush": 6, "ready": 2, "set_aliases": 1}
    # Instead of taking effect, or after it; alternating where there are many calls.
    POINTS: ClassVar = [
        (method, n, after)
        for method, calls in CALLS.items()
        for n in range(calls)
        for after in ((False, True) if calls <= 2 else (n % 2 == 1,))
    ]
    expected: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def undisturbed(self, small_batches: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What the same push leaves in another world where nothing fails."""
        if not self.expected:
            with monkeypatch.context() as patched, opened_world("edge", tmp_path / "undisturbed") as twin:
                twin.alignment()
                calls = {method: Calls(patched, twin.store, method) for method in self.CALLS}
                twin.push(twin.set("s", *pairs(10)), metrics=["cosine", "euclid"])
                assert {method: len(made) for method, made in calls.items()} == self.CALLS
                self.expected.update(twin.snapshot())
        return self.expected

    @pytest.mark.slow
    @pytest.mark.parametrize("world", ["edge"], indirect=True)
    @pytest.mark.parametrize(("method", "number", "after"), POINTS)
    def test_a_failing_store(
        self,
        world: World,
        undisturbed: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
        method: str,
        number: int,
        after: bool,
    ) -> None:
        embedding_set = world.set("s", *pairs(10))
        with monkeypatch.context() as patched:
            calls = Calls(patched, world.store, method)
            calls.fail(number, StoreUnavailableError("not now"), after=after)
            with pytest.raises(StoreUnavailableError, match="not now"):
                world.push(embedding_set, metrics=["cosine", "euclid"])
        (run,) = world.provenance.runs.newest(1)
        assert (run.outcome, run.error) == ("failed", "StoreUnavailableError: not now")
        # Nothing is live before everything is written, and the ledger never says more than the store holds.
        assert world.store.aliases() == ({} if method != "set_aliases" or not after else undisturbed["aliases"])
        for name in world.store.collections():
            said = sum(points for (release, *_), (points, _) in world.ledger().items() if release == name)
            assert said <= world.store.count(name)
        world.push(embedding_set, metrics=["cosine", "euclid"])
        assert world.snapshot() == undisturbed


def test_scores_of_the_pushed_world_are_what_the_alignment_promises() -> None:
    """Without noise, an image and its caption meet: their cosine is 1."""
    ours: Alignment = alignment()
    image, text = pairs(10)
    both = scores(METRICS["cosine"], ours.project("text", text.vectors), ours.project("image", image.vectors))
    np.testing.assert_allclose(np.diag(both), 1.0, atol=1e-5)
    assert (both.argmax(axis=1) == np.arange(10)).all()
