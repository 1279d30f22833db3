"""The provenance chain fails closed: whatever does not belong together is refused, and the message names both sides."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import update

from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from connector.encoding.encoders import Encoder
from connector.errors import CollectionNotFoundError, MismatchError
from connector.provenance.tables import EncoderRow, ReleaseRow
from connector.releases.chain import METADATA
from connector.releases.promotion import Lifecycle, PromotionOverride
from connector.releases.release import Release, open_release
from connector.search import retriever as search
from connector.search.retriever import Retriever
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.edge import EdgeStore
from tests.support.errors import raises
from tests.support.fakes import TEXT_DIM
from tests.support.sparse_copy import copy_sparse
from tests.support.world import COLLECTION, World, alignment, audit, cards, only, opened_world, pairs


class TextEncoder(Encoder):
    """`tiny:NAME`: what it is called, its weights and its preprocessing make its fingerprint, as of every encoder."""

    scheme, modalities = "tiny", ("text",)

    def __init__(self, name: str = "small", weight: float = 1.0, preprocessing: str = "lower case") -> None:
        super().__init__(name, torch.device("cpu"))
        model = torch.nn.Linear(TEXT_DIM, TEXT_DIM, bias=False)
        torch.nn.init.constant_(model.weight, weight)
        self._identify(model, preprocessing)
        self.dim = TEXT_DIM

    def forward(self, modality: str, prepared: Any) -> torch.Tensor:
        return torch.ones(len(prepared), TEXT_DIM)


OTHERS = {
    "encoder": TextEncoder("large", weight=3.0),
    "weights": TextEncoder(weight=2.0),
    "preprocessing": TextEncoder(preprocessing="upper case"),
}


def encoders(text: EncoderCard) -> dict[Any, EncoderCard]:
    return {"image": cards()["image"], "text": text}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a live release of the alignment `a` and a shadow of `b`, of the same encoders."""
    home = tmp_path_factory.mktemp("template") / "home"
    with opened_world("edge", home) as opened:
        for turn, name in enumerate("ab"):
            ours = only(alignment(turn=turn), encoders=encoders(TextEncoder().card))
            ours.save(opened.home / "alignments" / name)
        embedding_set = opened.set("s", *pairs(40), encoders=encoders(TextEncoder().card))
        for name in "ab":
            opened.push(embedding_set, name)
    return home


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Iterator[World]:
    with opened_world("edge", copy_sparse(template, tmp_path / "home")) as opened:
        yield opened


def live(world: World) -> Release:
    return open_release(world.provenance, world.store, COLLECTION)


def write(world: World) -> None:
    world.push(EmbeddingSet.open(world.home / "sets" / "s"))


def query(world: World) -> None:
    Retriever.open(world.provenance, world.store, COLLECTION, device="cpu").search_texts(["red"], k=1)


def audited(world: World) -> None:
    audit(live(world), world.store, EmbeddingSet.open(world.home / "sets" / "s"))


def promote(world: World) -> None:
    with world.provenance.runs.start("promote", {}) as run:
        forced = PromotionOverride("someone@somewhere", "no reason is good enough")
        Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id, forced=forced)


OPERATIONS: dict[str, Callable[[World], None]] = {"write": write, "query": query, "audit": audited, "promote": promote}
# What is broken, and the two sides that the message has to name.
Sides = tuple[str, str]


def another_encoder(world: World, release: Release, operation: str, link: str, patch: pytest.MonkeyPatch) -> Sides:
    """Embeddings of another encoder, or of one that changed behind its name."""
    found, expected = OTHERS[link], TextEncoder()
    assert found.card.fingerprint != expected.card.fingerprint
    if operation == "query":
        patch.setattr(search, "load_encoder", lambda *_, **__: found)
    elif operation == "promote":
        values = {"spec": found.card.spec, "fingerprint": found.card.fingerprint}
        with world.provenance.database.session() as session:
            session.execute(update(EncoderRow).where(EncoderRow.modality == "text").values(values))
    else:
        shutil.rmtree(world.home / "sets" / "s")
        world.set("s", *pairs(40), encoders=encoders(found.card))
    return str(found.card), str(expected.card)


def another_alignment(world: World, release: Release, operation: str, link: str, patch: pytest.MonkeyPatch) -> Sides:
    """The directory holds another alignment; to a push, which asks for what is there, the collection does."""
    if operation == "write":
        return in_metadata(world, release, "alignment", "0" * 64)
    place = world.home / "alignments" / ("b" if operation == "promote" else "a")
    shutil.rmtree(place)
    other = alignment(turn=7)
    other.save(place)
    return other.fingerprint[:12], release.alignment.fingerprint[:12]


def another_metric(world: World, release: Release, operation: str, link: str, patch: pytest.MonkeyPatch) -> Sides:
    return in_metadata(world, release, "metric", "dot")


def another_lowering(world: World, release: Release, operation: str, link: str, patch: pytest.MonkeyPatch) -> Sides:
    with world.provenance.database.session() as session:
        session.execute(update(ReleaseRow).where(ReleaseRow.id == release.row.id).values(lowering_version=2))
    return "('cosine', 'Cosine', 6, 2)", "('cosine', 'Cosine', 6, 1)"


def another_dimension(world: World, release: Release, operation: str, link: str, patch: pytest.MonkeyPatch) -> Sides:
    rebuilt(world, release, world.store.describe(release.name).metadata, dim=7)
    return "('Cosine', 7)", "('Cosine', 6)"


def another_store(world: World, release: Release, operation: str, link: str, patch: pytest.MonkeyPatch) -> Sides:
    """A store in which a collection of that name is somebody else's."""
    rebuilt(world, release, {})
    return "nothing", str(cards()["image"].spec)


def in_metadata(world: World, release: Release, link: str, value: str) -> Sides:
    metadata = world.store.describe(release.name).metadata
    chain = dict(metadata[METADATA])
    expected, chain[link] = chain[link], value
    rebuilt(world, release, {METADATA: chain})
    return f"{link} {value}", f"expected {expected}"


def rebuilt(world: World, release: Release, metadata: Any, dim: int = 6) -> None:
    vector = VectorConfig(dim, release.lowerings["image"].distance)
    world.store.drop(release.name)
    world.store.create(release.name, CollectionConfig({"image": vector, "text": vector}, metadata=metadata))


LINKS: dict[str, Callable[[World, Release, str, str, pytest.MonkeyPatch], Sides]] = {
    "encoder": another_encoder,
    "weights": another_encoder,
    "preprocessing": another_encoder,
    "alignment": another_alignment,
    "metric": another_metric,
    "lowering version": another_lowering,
    "dimension": another_dimension,
    "store": another_store,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("link", LINKS)
def test_a_mismatch_is_refused(world: World, monkeypatch: pytest.MonkeyPatch, link: str, operation: str) -> None:
    which = "ready" if operation == "promote" else "live"
    release = open_release(world.provenance, world.store, COLLECTION, which=which)
    found, expected = LINKS[link](world, release, operation, link, monkeypatch)
    before = world.snapshot()
    with pytest.raises(MismatchError) as caught:
        OPERATIONS[operation](world)
    assert found in str(caught.value)
    assert expected in str(caught.value)
    assert world.snapshot() == before


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_belongs_together_is_not(world: World, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    monkeypatch.setattr(search, "load_encoder", lambda *_, **__: TextEncoder())
    OPERATIONS[operation](world)


@pytest.mark.parametrize("operation", ["query", "audit", "promote"])
def test_a_release_of_another_store(world: World, operation: str, tmp_path: Path) -> None:
    with (
        EdgeStore(tmp_path / "elsewhere") as world.store,
        raises(CollectionNotFoundError, world.store.url, "edge:qdrant"),
    ):
        OPERATIONS[operation](world)


def test_every_encoder_is_another() -> None:
    fingerprints = {encoder.card.fingerprint for encoder in (TextEncoder(), *OTHERS.values())}
    assert len(fingerprints) == 4
    assert replace(OTHERS["weights"].card, fingerprint="") == replace(TextEncoder().card, fingerprint="")
