"""Write embedding sets of a home, from a corpus or from vectors computed elsewhere, and record them in SQL."""

from collections.abc import Mapping
from pathlib import Path

from alignment.modality import Modality
from alignment.sets.cards import Dtype, EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter, check_same_encoder, recorded_encoders
from connector.corpora.items import Corpus
from connector.corpora.vector_files import open_vectors
from connector.encoding.deferred import open_encoders
from connector.encoding.encode import SHARD_ROWS, encode
from connector.encoding.encoders import Encoder, ImportedEncoder, PrecomputedEncoder
from connector.encoding.unit_encoder import BATCH_ITEMS
from connector.executors.contract import Executor
from connector.progress import progress
from connector.provenance.leases import set_lock
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.requests import ImportRequest
from connector.settings import MAX_PIXELS


def encoders_of_set(path: Path, specs: Mapping[Modality, str], device: str) -> dict[Modality, Encoder]:
    """Return the encoders that `specs` name, to add to the set at `path`. Those that made it load at their first use.

    Raises: as `connector.encoding.deferred.open_encoders`.
        EmbeddingSetError: an encoder that was loaded is not the one that made the set, or the set's card is damaged.
    """
    recorded = recorded_encoders(path)

    def check(modality: Modality, loaded: EncoderCard) -> None:
        if modality in recorded:
            check_same_encoder(path, modality, recorded[modality], loaded)

    return open_encoders(specs, device, recorded=recorded, check=check)


def encode_corpus(
    corpus: Corpus,
    path: Path,
    encoders: Mapping[Modality, Encoder],
    provenance: Provenance,
    run: Run,
    *,
    dtype: Dtype = "float32",
    batch_items: int = BATCH_ITEMS,
    shard_rows: int = SHARD_ROWS,
    max_pixels: int = MAX_PIXELS,
    executor: Executor | None = None,
    device: str = "auto",
    doing: str = "encode",
) -> EmbeddingSet:
    """Encode `corpus` into the embedding set at `path`, and record the set in SQL.

    Args and errors: as of `connector.encoding.encode.encode`; `doing` is the word that progress is told with.
    """
    cards = {modality: encoder.card for modality, encoder in encoders.items()}
    lock = set_lock(provenance.database, path, run.id)
    with (
        SetWriter(path, corpus=str(corpus.path), encoders=cards, dtype=dtype, lock=lock) as writer,
        progress(f"{doing} {path.name}", corpus.total(), "row") as advance,
    ):
        encode(
            corpus,
            writer,
            encoders,
            run,
            batch_items=batch_items,
            shard_rows=shard_rows,
            advance=advance,
            max_pixels=max_pixels,
            executor=executor,
            device=device,
        )
    embedding_set = EmbeddingSet.open(path)
    provenance.artifacts.record_set(embedding_set)
    return embedding_set


def import_vectors(request: ImportRequest, path: Path, provenance: Provenance, run: Run) -> EmbeddingSet:
    """Import vectors computed elsewhere into the embedding set at `path`, and record the set in SQL."""
    vectors = open_vectors(
        request.vectors,
        list(request.encoders),
        columns=request.columns,
        metadata=request.metadata,
        key=request.key,
        group=request.group,
        image=request.image,
        caption=request.caption,
    )
    dims = vectors.dims()
    encoders = {m: ImportedEncoder(name.removeprefix("imported:"), dims[m]) for m, name in request.encoders.items()}
    embedding_set = encode_corpus(vectors, path, encoders, provenance, run, dtype=request.dtype, doing="import")
    run.counts["imported"] = run.counts.pop("encoded", 0)
    # Rows of the other modality come from an earlier import and are not missing.
    others = sum(count for modality, count in embedding_set.card.counts.items() if modality not in request.encoders)
    run.counts["no_longer_in_corpus"] -= others
    return embedding_set


def take_vectors(
    rows: Corpus,
    path: Path,
    encoders: Mapping[Modality, EncoderCard],
    provenance: Provenance,
    run: Run,
    *,
    dtype: Dtype = "float32",
) -> EmbeddingSet:
    """Take items whose contents are vectors of `encoders` into the embedding set at `path`, and record it in SQL.

    Items that the set holds besides them stay.
    """
    computed = {modality: PrecomputedEncoder(card) for modality, card in encoders.items()}
    embedding_set = encode_corpus(
        rows, path, computed, provenance, run, dtype=dtype, batch_items=SHARD_ROWS, doing="import"
    )
    run.counts["imported"] = run.counts.pop("encoded", 0)
    return embedding_set
