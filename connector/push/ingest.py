"""Ingest a corpus: encode and push it in one pass, while it is being read.

    reading, hashing, decoding   a thread and a pool, a few batches ahead
    encoding                     a thread, a few shards ahead
    projecting, writing          the calling thread

A shard is durable in the embedding set before it is written into the store, and durable in the store before the ledger
records it. Any process may be killed at any moment: the same command continues from there.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from alignment.metrics import Metric
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.plurals import counted
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.shards import shard_paths
from alignment.sets.writer import SetWriter, check_may_add, recorded_encoders
from connector.corpora.formats import check_holds, open_corpus
from connector.corpora.items import Corpus
from connector.encoding.deferred import open_encoders
from connector.encoding.encode import SHARD_ROWS, Encoding
from connector.encoding.encoders import Encoder
from connector.encoding.pipeline import Pipeline
from connector.encoding.placement import executor_of
from connector.encoding.row_sink import DurableShard
from connector.encoding.unit_encoder import BATCH_ITEMS
from connector.errors import CorpusError
from connector.executors.contract import Executor
from connector.progress import progress
from connector.provenance.leases import set_lock
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.push.open_releases import ReleaseOpener
from connector.push.other_sets import refuse_keys_of_other_sets
from connector.push.session import PushSession, metrics_to_push, push_session
from connector.releases.chain import check_encoder
from connector.releases.release import Release, lower
from connector.releases.store_identity import here
from connector.requests import IngestRequest
from connector.settings import MAX_PIXELS
from connector.stores.contract import Store

_log = logging.getLogger(__name__)

SHARDS_AHEAD = 2

Confirm = Callable[[int], bool]


def ingest(
    request: IngestRequest,
    alignment: Alignment,
    alignment_id: int,
    *,
    path: Path,
    store: Store,
    provenance: Provenance,
    run: Run,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    prune: Confirm | None = None,
) -> list[Release]:
    """Ingest the corpus that `request` names, with the encoders of `alignment`; return the releases.

    Args:
        request: what to ingest, into what, and where it is encoded.
        alignment: what the request names.
        alignment_id: its row in SQL.
        path: directory of the embedding set.
        store: where the collections are.
        provenance: where everything is recorded.
        run: counts, and takes the rejects.
        device: where the encoders compute.
        max_pixels: of an image to decode.
        prune: asked before items that have left the corpus are deleted, with their number; None: they stay.

    Raises:
        CorpusError: the corpus is empty, or a column of a manifest that may hold captions or images is not named,
            which is known before an encoder loads; or items were not pruned, because rows of the corpus could not be
            read, or because they are more than `request.prune_at_most`, or units could not be encoded: all else is
            done.
        MismatchError: an encoder that loads now is not the alignment's; or a release of the collection has another
            layout, or another set of it has keys of the corpus, which is known before an encoder loads.
        EmbeddingSetError: the set has vectors of other encoders, which is known before, too.
        AccessDeniedError: the key of the store may not write what this would, which is known before, too.
    """
    corpus = open_corpus(request.corpus, **request.reading)
    specs = {modality: card.spec for modality, card in alignment.card.encoders.items()}
    check_holds(corpus, specs, chosen=False)
    metrics = metrics_to_push(request, alignment)
    for metric in metrics:  # refuse what cannot be pushed before anything is encoded
        lower(alignment, metric)
    opener = ReleaseOpener(alignment, alignment_id, request, store, provenance, run)
    opener.check_rights(metrics)
    opener.check_layouts(metrics)
    check_may_add(path, alignment.card.encoders)
    refuse_keys_of_other_sets(corpus, path, provenance, here(provenance, store), request.into, max_pixels)
    with executor_of(request, specs) as executor:
        begun = Ingest(
            request,
            corpus,
            path,
            _encoders(alignment, path, device, loaded=executor is None),
            alignment,
            alignment_id,
            metrics,
            store,
            provenance,
            run,
            prune,
            max_pixels,
            executor,
            device,
        )
        releases = begun.execute()
    if kept := run.counts["not_pruned"]:
        raise CorpusError(
            f"not met in the corpus: {counted(kept, 'item')} of the embedding set. Rows or files of it could not "
            "be read and may hold them: all else is done, nothing is deleted; see the lines above and `modalign "
            f"rejects {run.id}`, correct the rows and files and run the same command again, or leave --prune out"
        )
    if refused := run.counts["prune_refused"]:
        raise CorpusError(
            f"not met in the corpus: {counted(refused, 'item')} of the embedding set, more than a prune may delete: "
            "all else is done, nothing is deleted; look for a file that was cut or a disk that is not mounted; if they "
            "left, run the same command again with --prune-at-most, see the lines above"
        )
    return releases


def _encoders(alignment: Alignment, path: Path, device: str, *, loaded: bool) -> dict[Modality, Encoder]:
    """Return the encoders of `alignment`. Those that made the set at `path` load at their first use.

    So do all of them unless they are to be `loaded`, because workers have theirs.
    """
    cards = alignment.card.encoders
    return open_encoders(
        {modality: card.spec for modality, card in cards.items()},
        device,
        recorded={m: card for m, card in recorded_encoders(path).items() if cards.get(m) == card} if loaded else cards,
        check=lambda m, card: check_encoder(alignment, m, card, f"the encoder that {card.spec} loads now"),
        fingerprints={card.spec: card.fingerprint for card in cards.values()},
    )


@dataclass(frozen=True, slots=True)
class Ingest:
    """A corpus on its way into the releases of a collection.

    Attributes:
        request: into which collection, and how that is laid out and written.
        path: directory of the embedding set.
        encoders: the alignment's own.
        prune: asked with the number of items that have left the corpus; they are deleted if it returns True. None:
            keep them.
        executor: where units are encoded; None: in this process.
        device: where the encoders of its workers compute.
    """

    request: IngestRequest
    corpus: Corpus
    path: Path
    encoders: Mapping[Modality, Encoder]
    alignment: Alignment
    alignment_id: int
    metrics: Sequence[Metric]
    store: Store
    provenance: Provenance
    run: Run
    prune: Confirm | None = None
    max_pixels: int = MAX_PIXELS
    executor: Executor | None = None
    device: str = "auto"

    def execute(self) -> list[Release]:
        """Encode the corpus, write it, verify the releases and make them live.

        Raises:
            CorpusError: units could not be encoded. All else is done.
        """
        with self._push_session() as push:
            embedding_set, set_id, failed = self._write(push)
            if failed and not any(embedding_set.card.counts.values()):
                raise failed
            push.verify(embedding_set, set_id)
        push.make_live(embedding_set, set_id)
        if failed:
            raise failed
        return push.releases

    def _push_session(self) -> AbstractContextManager[PushSession]:
        return push_session(
            self.alignment,
            self.request,
            self.metrics,
            alignment_id=self.alignment_id,
            encoders={modality: encoder.card for modality, encoder in self.encoders.items()},
            store=self.store,
            provenance=self.provenance,
            run=self.run,
        )

    def _write(self, push: PushSession) -> tuple[EmbeddingSet, int, CorpusError | None]:
        """Encode the corpus and write it; return the complete set, the id of its row, and what units failed."""
        path, corpus = self.path, self.corpus
        cards = {modality: encoder.card for modality, encoder in self.encoders.items()}
        lock = set_lock(self.provenance.database, path, self.run.id)
        with (
            SetWriter(path, corpus=str(corpus.path), encoders=cards, lock=lock) as writer,
            progress(f"ingest {path.name}", corpus.total(), "row") as advance,
        ):
            set_id = self.provenance.artifacts.record_set(EmbeddingSet(path, writer.card))
            with push.others(path, set_id) as others:
                batches = push.open(path, set_id, others=others)
                with (
                    Encoding(
                        *(corpus, writer, self.encoders, self.run, BATCH_ITEMS, SHARD_ROWS, advance),
                        max_pixels=self.max_pixels,
                        executor=self.executor,
                        device=self.device,
                    ) as encoding,
                    Pipeline() as pipeline,
                ):
                    present = [
                        DurableShard(m, shard, additive=True) for m in MODALITIES for shard in shard_paths(path, m)
                    ]
                    for shard in chain(present, self._encoded(encoding, pipeline)):
                        # A shard that supersedes rows waits until these are gone: counted twice in the ledger, their
                        # points would seem to have vanished at the next run.
                        if shard.additive:
                            batches.write(shard.modality, shard.path)
                    changed = encoding.finish(self._add_tombstones(encoding, push, set_id))
                embedding_set = EmbeddingSet.open(path)
                self.provenance.artifacts.record_set(embedding_set)
                batches.apply_tombstones()
                batches.finish(embedding_set, changed=changed)
        return embedding_set, set_id, encoding.units_error()

    def _encoded(self, encoding: Encoding, pipeline: Pipeline) -> Iterator[DurableShard]:
        """Yield shards as they become durable: ahead of the writes, unless workers are ahead already.

        Their outcomes are waited for in the calling thread, because an interrupt comes there.
        """
        shards = encoding.shards(pipeline)
        return shards if self.executor else pipeline.ahead(shards, SHARDS_AHEAD)

    def _add_tombstones(
        self, encoding: Encoding, push: PushSession, set_id: int
    ) -> Callable[[Modality, str, list[str]], None] | None:
        """Return a function that adds tombstones for items that left the corpus; None: keep them.

        They are kept unless `prune` says otherwise, whenever a part of the corpus could not be read, and where they are
        so many that the corpus may be cut.
        """
        if self.prune is None or not (gone := encoding.gone()):
            return None
        count = sum(of_modality.rows for of_modality in gone.values())
        if encoding.unread:  # an item that could not be read may be one of those that seem to be gone
            self.run.counts["not_pruned"] += count
            examples = ", ".join(encoding.unread_examples)
            unread = counted(encoding.unread, "place")
            _log.warning("nothing is pruned, because %s of the corpus could not be read: %s", unread, examples)
            return None
        share = max(of_modality.share for of_modality in gone.values())
        if share > self.request.prune_at_most:
            self.run.counts["prune_refused"] += count
            many = ", ".join(f"{of_modality.rows} of {of_modality.of} {m}s" for m, of_modality in gone.items())
            enough = math.ceil(share * 100) / 100
            _log.warning(
                "%s left the corpus, more than %s of them, so nothing is pruned without --prune-at-most %s",
                *(many, self.request.prune_at_most, enough),
            )
            return None
        if not self.prune(count):
            return None
        releases = [release.row.id for release in push.reached]
        return lambda modality, shard, keys: self.provenance.ledger.add_tombstones(
            set_id, modality, shard, keys, releases, retired=False
        )
