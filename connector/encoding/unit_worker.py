"""Workers of an encode: each encodes one unit after the other, in this process or in another one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from alignment.modality import Modality
from alignment.object_storage import is_remote
from alignment.sets.cards import EncoderCard
from connector.corpora.annotations import PROBED
from connector.corpora.items import Corpus, Item, Unit
from connector.corpora.picture_files import is_file
from connector.encoding.deferred import open_encoders
from connector.encoding.known_contents import KnownContents
from connector.encoding.pipeline import Pipeline
from connector.encoding.unit_encoder import UnitEncoder
from connector.encoding.unit_rows import to_batches
from connector.errors import MismatchError


def files_here(corpus: Corpus) -> tuple[Path, ...]:
    """Return files of this machine that the corpus is read from: its own, and an image of each folder of its first."""
    if is_remote(corpus.path):
        return ()
    images: dict[Path, Path] = {}
    for entry in islice(corpus, PROBED):
        if isinstance(entry, Item) and isinstance(entry.content, Path) and is_file(entry.content):
            images.setdefault(entry.content.parent, entry.content)
    own = [corpus.path] if is_file(corpus.path) else []  # a folder is there, but empty, where nothing is mounted
    return (*own, *images.values())


def files_missing(path: Path) -> MismatchError:
    """Return the error of a file that a worker lacks, and the driver has."""
    return MismatchError(
        f"{path} is not there where a worker reads it, and is where the work is given out: mount the corpus and its "
        "images under the same paths on every machine, or put them into object storage",
        code="worker-files",
    )


@dataclass(frozen=True, slots=True)
class UnitWorkerFactory:
    """Makes a worker, which yields a unit's rows as batches of `connector.encoding.unit_rows.SCHEMA`.

    Attributes:
        corpus: that the units are of. Its files are read where the worker is, under the same paths.
        cards: of the encoders. One is loaded when the first content is to be encoded.
        known: contents that the set holds vectors of.
        batch_items: that an encoder takes at a time.
        max_pixels: of an image to decode.
        device: where the encoders compute.
        files: that the driver reads the corpus from, and the worker has to see under the same paths.
    """

    corpus: Corpus
    cards: Mapping[Modality, EncoderCard]
    known: KnownContents
    batch_items: int
    max_pixels: int
    device: str
    files: tuple[Path, ...] = ()

    def __call__(self) -> Callable[[Unit], Iterator[pa.RecordBatch]]:
        """Check what needs no model, and return the worker.

        Raises: as `connector.encoding.deferred.open_encoders`.
            MismatchError: a file of the corpus is not here. Each row would be refused, as if it were gone.
        """
        for path in self.files:
            if not is_file(path):
                raise files_missing(path)
        encoders = open_encoders(
            {modality: card.spec for modality, card in self.cards.items()},
            self.device,
            recorded=self.cards,
            check=self._check,
        )
        encoder = UnitEncoder(encoders, self.known, self.batch_items, self.max_pixels)

        def encode(unit: Unit) -> Iterator[pa.RecordBatch]:
            with Pipeline() as pipeline:
                yield from to_batches(encoder.encode([self.corpus.within(unit)], pipeline))

        return encode

    def _check(self, modality: Modality, loaded: EncoderCard) -> None:
        if loaded != self.cards[modality]:
            raise MismatchError(
                f"a worker loads {loaded} for {modality}, expected {self.cards[modality]}: install the same packages "
                "and weights on every machine",
                code="worker-encoder",
            )
