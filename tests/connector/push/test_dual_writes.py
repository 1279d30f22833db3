"""What arrives while a shadow is built or waits reaches the live release and the shadow: both equal a fresh push."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from connector.errors import MismatchError, StoreUnavailableError
from connector.push import batches as pushing
from connector.releases.points import point_id
from connector.stores.points import Points
from tests.support.errors import raises
from tests.support.world import (
    COLLECTION,
    KINDS,
    LIVE,
    Calls,
    World,
    alignment,
    cards,
    only,
    opened_world,
    pairs,
    points_of,
    stored,
)


@pytest.fixture(params=[*KINDS, *LIVE])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(pushing, "BATCH_POINTS", 4)
    monkeypatch.setattr(pushing, "WRITE_POINTS", 4)
    monkeypatch.setattr(pushing, "FLUSH_POINTS", 16)
    with opened_world(request.param, tmp_path, request) as opened:
        opened.alignment()
        opened.alignment("b", turn=1)
        yield opened


def later() -> list[Rows]:
    """Ten pairs, of which caption 5 has changed, image 7 and its caption are gone, and two pairs are new."""
    image, text = pairs(10)
    text.payloads[5] = json.dumps({"number": "another"})
    kept = [row for row in range(10) if row != 7]
    return [image.take(kept), text.take(kept), *pairs(2, seed=5, prefix="new-")]


def changed(world: World) -> EmbeddingSet:
    """Change the set, and take what has left it out of every release that is not retired, as deletions do."""
    embedding_set = world.set("s", *later())
    for row in world.provenance.releases.find():
        if row.state != "retired":
            world.store.delete(row.physical_name, [point_id(m, "7") for m in MODALITIES])
    return embedding_set


def contents(world: World, name: str) -> Any:
    ledger = {(shard, start): line for (release, shard, start), line in world.ledger().items() if release == name}
    return {m: stored(world.store, name, m) for m in MODALITIES}, ledger


def check_fresh(world: World) -> None:
    """Both releases hold what pushing the set for the first time gives, and SQL says so."""
    for name, turn in {"a": 0, "b": 1}.items():
        ours = f"{COLLECTION}.cosine.{alignment(turn=turn).fingerprint[:8]}"
        world.push(EmbeddingSet.open(world.home / "sets" / "s"), name, collection=f"fresh-{name}")
        fresh = f"fresh-{name}.cosine.{alignment(turn=turn).fingerprint[:8]}"
        assert contents(world, ours) == contents(world, fresh)
        assert world.states()[ours][1] == world.store.count(ours) == 22
    assert [state for name, (state, _) in world.states().items() if name.startswith(COLLECTION)] == ["live", "ready"]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["a", "b"])
def test_while_a_shadow_waits(world: World, by: str) -> None:
    world.push(world.set("s", *pairs(10)))
    world.push(world.set("s", *pairs(10)), "b")
    pushed = world.push(changed(world), by)
    assert [release.alignment.fingerprint for release in pushed.releases] == [
        alignment(turn="ab".index(by)).fingerprint
    ]
    check_fresh(world)


@pytest.mark.parametrize("number", [0, 2, 5])
def test_while_a_shadow_is_built(world: World, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Another process changes the set and pushes it, before the shadow's push writes what it read earlier."""
    first = world.set("s", *pairs(10))
    world.push(first)
    shadow = f"{COLLECTION}.cosine.{alignment(turn=1).fingerprint[:8]}"
    original, written = world.store.upsert, 0

    def upsert(name: str, points: Points) -> None:
        nonlocal written
        written += name == shadow
        if written == number + 1 and name == shadow:
            written += 100
            world.push(changed(world))
        original(name, points)

    monkeypatch.setattr(world.store, "upsert", upsert)
    world.push(first, "b")
    assert written > 100
    check_fresh(world)


@pytest.mark.slow
def test_a_shadow_that_was_not_written_to_the_end_stays_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.set("s", *pairs(10))
    world.push(first)
    with monkeypatch.context() as patched:
        Calls(patched, world.store, "upsert").fail(3, StoreUnavailableError("now"))
        with pytest.raises(StoreUnavailableError):
            world.push(first, "b")
    world.push(world.set("more", *pairs(3, seed=4, prefix="more-")))
    shadow = f"{COLLECTION}.cosine.{alignment(turn=1).fingerprint[:8]}"
    assert world.states()[shadow] == ("building", 0)
    assert world.store.count(shadow) == 10 + 6
    world.push(first, "b")
    assert world.states()[shadow] == ("ready", 26)


def test_what_has_other_encoders_is_named(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.push(world.set("s", *pairs(5)))
    found: dict[Modality, EncoderCard] = {**cards(), "text": replace(cards()["text"], fingerprint="0" * 64)}
    only(alignment(turn=1), encoders=found).save(world.home / "alignments" / "other")
    (live,) = [row.physical_name for row in world.provenance.releases.find()]
    (shadow,) = world.push(world.set("t", *pairs(5), encoders=found), "other").releases
    said = caplog.text
    assert f"release {live} (live) does not get this: the embedding set has text vectors" in said
    assert f"{found['text']}, the alignment was fitted for {cards()['text']}" in said
    caplog.clear()
    world.push(world.set("s", *pairs(5)))
    assert f"release {shadow.name} (ready) does not get this: " in caplog.text
    assert (world.store.count(live), world.store.count(shadow.name)) == (10, 10)


def test_what_does_not_belong_together_any_more_is_named(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A shadow that is broken does not keep new items from production."""
    world.push(world.set("s", *pairs(5)))
    (shadow,) = world.push(world.set("s", *pairs(5)), "b").releases
    world.store.drop(shadow.name)
    world.push(world.set("more", *pairs(3, seed=4, prefix="more-")))
    assert f"release {shadow.name} (ready) does not get this: " in caplog.text
    assert sorted(world.states().values()) == [("live", 16), ("ready", 10)]


def test_a_shadow_with_foreign_points_fails_the_push_and_production_has_it(world: World) -> None:
    world.push(world.set("s", *pairs(5)))
    (shadow,) = world.push(world.set("s", *pairs(5)), "b").releases
    world.store.upsert(shadow.name, Points("image", points_of(1), np.ones((1, 6), np.float32), [{}]))
    with raises(MismatchError, shadow.name, 17, 16):
        world.push(world.set("more", *pairs(3, seed=4, prefix="more-")), metrics=["cosine", "dot"])
    assert sorted(world.states().values()) == [("live", 6), ("live", 16), ("ready", 10)]


@pytest.mark.slow
def test_retired_releases_get_nothing(world: World) -> None:
    world.push(world.set("s", *pairs(5)))
    (shadow,) = world.push(world.set("s", *pairs(5)), "b").releases
    shadow.row.state = "retired"
    world.provenance.releases.save(shadow.row)
    world.push(world.set("more", *pairs(3, seed=4, prefix="more-")))
    assert world.store.count(shadow.name) == 10
    world.push(world.set("s", *pairs(5)), "b")  # which brings it back
    assert world.states()[shadow.name] == ("ready", 10)


def test_each_release_reads_texts_as_the_kinds_of_its_own_indexes(world: World) -> None:
    image, text = pairs(3)
    text = replace(text, payloads=[json.dumps({"year": year}) for year in ("1999", "2000", "soon")])
    embedding_set = world.set("s", image, text)
    (live,) = world.push(embedding_set).releases
    pushed = world.push(embedding_set, "b", payload_indexes={"year": "integer"})
    (shadow,) = pushed.releases
    assert world.reasons(pushed.run) == [("text", "2", "payload-not-integer")]
    years = {
        name: {p["key"]: p["year"] for _, p in stored(world.store, name, "text").values() if "year" in p}
        for name in (live.name, shadow.name)
    }
    assert years == {live.name: {"0": "1999", "1": "2000", "2": "soon"}, shadow.name: {"0": 1999, "1": 2000}}


def test_what_every_release_refuses_is_one_reject(world: World) -> None:
    image, text = pairs(3)
    embedding_set = world.set("s", image, replace(text, payloads=["{}", "no JSON", "{}"]))
    world.push(embedding_set)
    pushed = world.push(embedding_set, "b")
    assert (world.reasons(pushed.run), pushed.counts["rejected"]) == ([("text", "1", "payload-not-json")], 1)


@pytest.mark.slow
def test_other_metrics_are_written_too(world: World) -> None:
    world.push(world.set("s", *pairs(5)), metrics=["cosine", "chi2"])
    world.push(world.set("more", *pairs(3, seed=4, prefix="more-")), metrics=["cosine"])
    assert set(world.states().values()) == {("live", 16)}
    assert len(world.store.aliases()) == 2
