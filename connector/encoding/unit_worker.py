"""Workers of an encode: each encodes one unit after the other, in this process or in another one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from alignment.modality import Modality
from alignment.sets.cards import EncoderCard
from connector.corpora.items import Corpus, Unit
from connector.encoding.deferred import open_encoders
from connector.encoding.known_contents import KnownContents
from connector.encoding.pipeline import Pipeline
from connector.encoding.unit_encoder import UnitEncoder
from connector.encoding.unit_rows import to_batches
from connector.errors import MismatchError


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
    """

    corpus: Corpus
    cards: Mapping[Modality, EncoderCard]
    known: KnownContents
    batch_items: int
    max_pixels: int
    device: str

    def __call__(self) -> Callable[[Unit], Iterator[pa.RecordBatch]]:
        """Check what needs no model, and return the worker.

        Raises: as `connector.encoding.deferred.open_encoders`.
        """
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
