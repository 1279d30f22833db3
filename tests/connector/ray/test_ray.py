import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data

from alignment.errors import EmbeddingSetError, SetBusyError
from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import EncoderCard, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from connector.errors import MismatchError
from connector.home import Home
from connector.ray import ReleaseSink, read_set
from connector.rejects import Reason
from connector.requests import PushRequest
from connector.settings import Settings
from connector.stores.edge import EdgeStore
from tests.support.errors import raises
from tests.support.world import COLLECTION, World, cards, pairs, stored

pytestmark = pytest.mark.cluster

N = 60
REQUEST = PushRequest(set="s", into=COLLECTION, alignment="a")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    return made_home(home)


def made_home(home: Path) -> Settings:
    """A home with an alignment and a database, and no set."""
    settings = Settings.load(home=home)
    with EdgeStore(home / "qdrant") as store:
        world = World(home, store)
        world.alignment("a")
        world.provenance.close()
    return settings


def table(*parts: Rows) -> pa.Table:
    """Rows as a user's pipeline has them: no hashes, payloads as JSON."""
    return pa.concat_tables(
        pa.table(
            {
                "modality": [part.modality] * len(part),
                "key": part.keys,
                "group": part.groups,
                "payload": part.payloads,
                "vector": pa.array(list(part.vectors), pa.list_(pa.float32())),
            }
        )
        for part in parts
    )


def left(settings: Settings) -> dict[str, Any]:
    """The points, counts, aliases and rows that a home holds, whatever shards and batches they came in."""
    with Home(settings) as home:
        store = home.store
        points = {name: {m: stored(store, name, m) for m in MODALITIES} for name in store.collections()}
        states = {row.physical_name: (row.state, row.points) for row in home.provenance.releases.find()}
        ledger = {row.id: home.provenance.ledger.points(row.id) for row in home.provenance.releases.find()}
        card = home.embedding_set("s").card
        return {
            "points": points,
            "aliases": store.aliases(),
            "states": states,
            "ledger": sorted(ledger.values()),
            "set": (card.fingerprint, card.counts),
        }


def pushed(home: Path, parts: Sequence[Rows]) -> dict[str, Any]:
    """What an ordinary push of a set of these rows leaves in another home."""
    with EdgeStore(home / "qdrant") as store:
        world = World(home, store)
        world.alignment("a")
        world.push(world.set("s", *parts))
        world.provenance.close()
    return left(Settings.load(home=home))


def rejects(settings: Settings) -> list[tuple[Any, Any, str]]:
    with Home(settings) as home:
        return sorted((r.modality or "", r.key or "", r.reason) for r in home.rejects().rows)


def test_a_dataset_through_map_batches_gives_the_release_of_a_push(settings: Settings, tmp_path: Path) -> None:
    parts = pairs(N)
    given = table(*parts)
    vectors = given.column("vector")
    dataset = ray.data.from_arrow(given.drop_columns(["vector"]).append_column("row", pa.array(range(2 * N))))

    def embed(batch: pa.Table) -> pa.Table:
        own = vectors.take(batch.column("row"))
        return batch.drop_columns(["row"]).append_column("vector", own)

    sink = ReleaseSink(REQUEST, encoders=cards(), settings=settings)
    dataset.map_batches(embed, batch_format="pyarrow", batch_size=16).write_datasink(sink)

    assert left(settings) == pushed(tmp_path / "other", parts)
    assert sink.result is not None
    assert [release.row.state for release in sink.result.value] == ["live"]
    assert (sink.result.counts["imported"], sink.result.counts["written"]) == (2 * N, 2 * N)
    assert list((settings.home / "sets").glob(".*.rows")) == []


def test_a_set_that_is_read_and_written_is_the_same_set(settings: Settings, tmp_path: Path) -> None:
    before = pushed(tmp_path / "other", pairs(N))
    dataset = read_set(tmp_path / "other" / "sets" / "s")
    dataset.write_datasink(ReleaseSink(REQUEST, encoders=cards(), settings=settings))
    assert left(settings) == before


class Dying(ReleaseSink):
    """Ends the process of the task that writes first, once it has written."""

    def write(self, blocks: Any, ctx: Any) -> list[str]:
        names = super().write(list(blocks), ctx)
        marker = self._staging.parent.parent / "died"
        if not marker.exists():
            marker.touch()
            os._exit(1)
        return names


def test_a_task_that_dies_after_it_wrote_is_repeated_and_nothing_is_there_twice(
    settings: Settings, tmp_path: Path
) -> None:
    parts = pairs(N)
    sink = Dying(REQUEST, encoders=cards(), settings=settings)
    ray.data.from_arrow(table(*parts)).repartition(4).write_datasink(sink)
    (settings.home / "sets" / "died").unlink()
    assert left(settings) == pushed(tmp_path / "other", parts)
    assert rejects(settings) == []


def rows_like(*changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Good images, one a change, with that change."""
    good = table(pairs(len(changes))[0]).to_pylist()
    return [{**row, **change} for row, change in zip(good, changes, strict=True)]


def test_rows_that_cannot_be_used_are_rejects_in_sql_and_the_others_are_written(settings: Settings) -> None:
    rows = rows_like(
        {},
        {"key": "0"},  # of the row before, with another vector
        {"key": None},
        {"vector": [1.0, 2.0]},
        {"vector": [0.0] * 12},
        {"vector": [float("nan")] * 12},
        {"vector": None},
        {"modality": "sound", "key": "noise"},
        {"payload": "[1, 2]"},
        {"payload": '{"wide": 1e999, "caption": "kept"}'},
        {"payload": '{"caption": 7}'},
    )
    schema = table(*pairs(1)).schema
    sink = ReleaseSink(REQUEST, encoders=cards(), settings=settings)
    ray.data.from_arrow(pa.Table.from_pylist(rows, schema)).write_datasink(sink)
    assert rejects(settings) == sorted(
        [
            ("image", "0", Reason.KEY_DUPLICATE),
            ("image", "", Reason.KEY_MISSING),
            ("image", "3", Reason.VECTOR_DIMENSION),
            ("image", "4", Reason.VECTOR_ZERO),
            ("image", "5", Reason.VECTOR_NOT_FINITE),
            ("image", "6", Reason.VECTOR_DIMENSION),
            ("", "noise", Reason.ROW_UNREADABLE),
            ("image", "8", Reason.ROW_UNREADABLE),
            ("image", "9", Reason.PAYLOAD_NOT_JSON),
            ("image", "10", Reason.CAPTION_NOT_TEXT),
        ]
    )
    assert sink.result is not None
    ((_, points),) = left(settings)["points"].items()
    assert sorted(payload["key"] for _, payload in points["image"].values()) == ["0", "9"]


def test_a_write_of_what_a_set_holds_changes_what_differs_alone(settings: Settings, tmp_path: Path) -> None:
    first, more = pairs(N), pairs(N // 2, seed=1, prefix="more-")
    changed = replace(first[0].take([0]), payloads=[json.dumps({"new": True, "number": 0})])
    for part in (table(*first), table(*more, changed)):
        sink = ReleaseSink(REQUEST, encoders=cards(), settings=settings)
        ray.data.from_arrow(part).write_datasink(sink)
    rest = first[0].take(range(1, N))
    expected = pushed(tmp_path / "other", [rest, first[1], *more, changed])
    assert left(settings) == expected


def vectors_as(kind: str) -> Any:
    vectors = pairs(8)[0].vectors
    if kind == "tensors of arrow":
        return pa.FixedShapeTensorArray.from_numpy_ndarray(vectors)
    if kind == "lists of float64":
        return pa.array(list(vectors.astype(np.float64)), pa.list_(pa.float64()))
    assert kind == "lists of fixed size"
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


@pytest.mark.parametrize("kind", ["tensors of arrow", "lists of float64", "lists of fixed size", "tensors of ray"])
def test_vectors_may_be_lists_or_tensors_and_payloads_structs(kind: str, settings: Settings, tmp_path: Path) -> None:
    images = pairs(8)[0]
    plain = table(images).drop_columns(["vector", "payload"])
    plain = plain.append_column("payload", pa.array([json.loads(text) for text in images.payloads]))
    if kind == "tensors of ray":
        columns = {name: np.array(plain.column(name).to_pylist()) for name in plain.column_names}
        dataset = ray.data.from_numpy(images.vectors).map_batches(lambda batch: {**columns, "vector": batch["data"]})
    else:
        dataset = ray.data.from_arrow(plain.append_column("vector", vectors_as(kind)))
    dataset.write_datasink(ReleaseSink(REQUEST, encoders={"image": cards()["image"]}, settings=settings))
    (points,) = left(settings)["points"].values()
    (expected,) = pushed(tmp_path / "other", [images])["points"].values()
    assert points["image"] == expected["image"]


def test_a_set_names_the_encoders_of_the_modalities_that_it_holds(settings: Settings) -> None:
    sink = ReleaseSink(REQUEST, encoders=cards(), settings=settings)
    ray.data.from_arrow(table(pairs(4)[0])).write_datasink(sink)
    assert SetCard.read(settings.home / "sets" / "s").encoders == {"image": cards()["image"]}


def test_an_encoder_that_is_not_the_alignments_is_refused_before_a_row_is_computed(settings: Settings) -> None:
    foreign = EncoderCard("mine:v2", "0" * 64, cards()["image"].dim)
    with raises(MismatchError, "mine:v2"):
        ReleaseSink(REQUEST, encoders={"image": foreign}, settings=settings)
    assert not (settings.home / "sets").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda given: given.drop_columns(["key"]), "key"),
        (lambda given: given.append_column("label", given.column("key")), "label"),
        (lambda given: given.set_column(4, "vector", pa.array(range(len(given)))), "int64"),
    ],
    ids=["a column is missing", "a column of another name", "vectors that are none"],
)
def test_a_dataset_of_other_columns_is_refused_and_leaves_nothing(change: Any, named: str, settings: Settings) -> None:
    sink = ReleaseSink(REQUEST, encoders=cards(), settings=settings)
    with pytest.raises(Exception, match=named):  # Ray may wrap it
        ray.data.from_arrow(change(table(*pairs(4)))).write_datasink(sink)
    assert sink.result is None
    assert [path for path in (settings.home / "sets").glob("*") if path.suffix != ".lock"] == []


def test_a_dataset_that_fails_halfway_leaves_set_and_release_as_they_were(settings: Settings) -> None:
    ray.data.from_arrow(table(*pairs(N))).write_datasink(ReleaseSink(REQUEST, encoders=cards(), settings=settings))
    before = left(settings)

    def fail(batch: pa.Table) -> pa.Table:
        if "more-7" in batch.column("key").to_pylist():
            raise ValueError("out of luck")
        return batch

    more = ray.data.from_arrow(table(*pairs(16, seed=1, prefix="more-"))).repartition(8)
    sink = ReleaseSink(REQUEST, encoders=cards(), settings=settings)
    with pytest.raises(Exception, match="out of luck"):
        more.map_batches(fail, batch_format="pyarrow").write_datasink(sink)
    assert left(settings) == before
    assert list((settings.home / "sets").glob(".*.rows")) == []


def test_two_datasets_are_not_written_into_one_set_at_once(settings: Settings) -> None:
    first, second = (ReleaseSink(REQUEST, encoders=cards(), settings=settings) for _ in range(2))
    first.on_write_start()
    with raises(SetBusyError, "s"):
        second.on_write_start()
    first.on_write_failed(ValueError())
    second.on_write_start()
    second.on_write_failed(ValueError())


def test_tasks_do_not_get_the_keys_of_databases(settings: Settings) -> None:
    secret = replace(settings, api_key="s3cret")
    sink = ReleaseSink(REQUEST, encoders=cards(), settings=secret)
    sent: bytes = ray.cloudpickle.dumps(sink)
    assert b"s3cret" not in sent
    assert b"modalign.db" not in sent


@pytest.fixture(scope="module")
def a_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("read")
    pushed(home, pairs(N))
    return home / "sets" / "s"


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_set_is_read_as_a_dataset_of_tensors(modality: Modality, a_set: Path) -> None:
    batch = read_set(a_set, modality=modality).take_batch(2 * N)
    rows = EmbeddingSet.open(a_set).load(modality)
    order = np.argsort([int(key) for key in batch["key"]])
    assert np.array_equal(batch["vector"][order], rows.vectors)
    assert batch["vector"].dtype == np.float32
    assert set(batch["modality"]) == {modality}
    assert [batch["content_sha256"][row] for row in order] == rows.content_sha256
    assert [batch["payload"][row] for row in order] == rows.payloads


def damaged(path: Path) -> None:
    shard = next(path.glob("image-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-100])


def incomplete(path: Path) -> None:
    replace(SetCard.read(path), complete=False).write(path)


def without_captions(path: Path) -> None:
    """Leave it as it is."""


@pytest.mark.parametrize(
    ("spoil", "code"), [(damaged, "shard-damaged"), (incomplete, "embedding-set"), (without_captions, "embedding-set")]
)
def test_a_set_that_cannot_be_read_is_refused_before_a_task_starts(spoil: Any, code: str, tmp_path: Path) -> None:
    path = tmp_path / "home" / "sets" / "s"
    pushed(tmp_path / "home", pairs(4)[:1])
    spoil(path)
    with raises(EmbeddingSetError, str(path), code=code):
        read_set(path, modality="text" if spoil is without_captions else None)
