"""Ingests, prunes and deletions of a small corpus in a world: what they leave behind, and a call that fails."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignment.metrics import parse
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray
from connector.corpora.formats import open_corpus
from connector.corpora.items import Corpus, Entry
from connector.encoding.encoders import Encoder
from connector.executors.contract import Executor
from connector.provenance.artifacts import Artifacts
from connector.provenance.ledger import Ledger
from connector.provenance.runs import Run
from connector.push import batches, ingest
from connector.push.delete import Deletion
from connector.push.ingest import Confirm, Ingest
from connector.releases import verify
from connector.requests import IngestRequest
from tests.support.fakes import FakeImageEncoder, FakeTextEncoder, Pair, write_manifest
from tests.support.world import COLLECTION, World, stored

N = 24
SET = "things"


class Counting:
    """The fake encoders, which count what they embed."""

    def __init__(self) -> None:
        self.embedded = 0
        outer = self

        class Images(FakeImageEncoder):
            def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
                outer.embedded += len(prepared)
                return super().embed(modality, prepared)

        class Texts(FakeTextEncoder):
            def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
                outer.embedded += len(prepared)
                return super().embed(modality, prepared)

        self.encoders: Mapping[Modality, Encoder] = {"image": Images(), "text": Texts()}


@dataclass
class Ingested:
    counts: dict[str, int]
    embedded: int


@dataclass(frozen=True)
class Outcome:
    """What commands left behind."""

    everything: Any
    ledger: Any


@dataclass
class Bench:
    """A world with a corpus."""

    world: World
    pairs: list[Pair]
    manifest: Path
    encoders: Mapping[Modality, Encoder] | None = None
    corpus: Corpus | None = None
    executor: Executor | None = None
    extra: list[dict[str, Any]] = field(default_factory=list)

    def write(self, pairs: Sequence[Pair]) -> None:
        write_manifest(self.manifest, pairs, *self.extra)

    def ingest(self, *, metrics: Sequence[str] = ("cosine",), prune: Confirm | None = None, **options: Any) -> Ingested:
        counting = Counting()
        path = self.world.home / "alignments" / "a"
        loaded = Alignment.load(path)
        with self.world.provenance.runs.start("ingest", {}) as run:
            Ingest(
                IngestRequest(corpus=self.manifest, into=COLLECTION, alignment="a", prune_at_most=1, **options),
                self.corpus or open_corpus(self.manifest),
                self.world.home / "sets" / SET,
                self.encoders or counting.encoders,
                loaded,
                self.world.provenance.artifacts.record_alignment("a", path, loaded),
                [parse(metric) for metric in metrics],
                self.world.store,
                self.world.provenance,
                run,
                prune=prune,
                executor=self.executor,
            ).execute()
        return Ingested({name: count for name, count in run.counts.items() if count}, counting.embedded)

    def delete(self, **options: Any) -> Run:
        with self.world.provenance.runs.start("delete", {}) as run:
            Deletion(COLLECTION, self.world.store, self.world.provenance, run).delete(**options)
        return run

    def sets(self) -> dict[str, Any]:
        """The rows of every set, whatever shards they lie in."""
        found = {}
        for path in sorted((self.world.home / "sets").iterdir()):
            if path.is_dir():
                opened = EmbeddingSet.open(path)
                found[path.name] = (opened.card.fingerprint, opened.card.counts)
        return found

    def points(self) -> dict[str, Any]:
        """Every point of every collection."""
        store = self.world.store
        return {name: {m: stored(store, name, m) for m in MODALITIES} for name in store.collections()}

    def everything(self) -> Any:
        written = sum(points for points, _ in self.world.ledger().values())
        with self.world.provenance.database.session() as session:
            from connector.provenance.tables import LeaseRow, TombstoneRow

            assert not session.query(TombstoneRow).count()
            assert not session.query(LeaseRow).count()
        return self.sets(), self.points(), written, self.world.store.aliases(), self.world.states()

    def outcome(self) -> Outcome:
        return Outcome(self.everything(), self.world.ledger())

    def keys(self, modality: Modality) -> list[str]:
        (name,) = self.world.store.collections()
        return sorted(
            p["key"] for _, p in stored(self.world.store, name, modality).values() if p["modality"] == modality
        )


def arm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: Any, method: str, number: int, error: BaseException
) -> None:
    """Let call `number` of a method fail, once."""
    owner: Any = {
        "store": bench.world.store,
        "ledger": Ledger,
        "artifacts": Artifacts,
        "writer": SetWriter,
        "encoder": Encoder,
        "corpus": type(open_corpus(bench.manifest)),
    }[where]
    plain, calls = getattr(owner, method), iter(range(1 << 30))

    def iterated(self: Any) -> Iterator[Entry]:
        for item in plain(self):
            if next(calls) == number:
                raise error
            yield item

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            raise error
        return plain(*arguments, **options)

    monkeypatch.setattr(owner, method, iterated if where == "corpus" else called)


@contextmanager
def small_steps() -> Iterator[None]:
    """Let a corpus of a few pairs be more than one batch, shard and flush."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ingest, "BATCH_ITEMS", 4)
        patched.setattr(ingest, "SHARD_ROWS", 8)
        patched.setattr(batches, "BATCH_POINTS", 4)
        patched.setattr(verify, "BATCH_POINTS", 4)
        patched.setattr(batches, "FLUSH_POINTS", 8)
        yield
