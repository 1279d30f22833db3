"""The fingerprint of an embedding set."""

import hashlib
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii

import pyarrow as pa

from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import EncoderCard


class Fingerprint:
    """SHA-256 over encoders and rows without their vectors, independent of the order of the rows.

    Attributes:
        counts: rows of each modality so far.
    """

    def __init__(self, encoders: Mapping[Modality, EncoderCard]):
        self.counts: dict[Modality, int] = dict.fromkeys(MODALITIES, 0)
        self._sum = int.from_bytes(hashlib.sha256(repr(sorted(encoders.items())).encode()).digest())

    def add(self, modality: Modality, identity: pa.Table) -> None:
        """Count rows in, by their columns `IDENTITY`."""
        columns = [map(encode_basestring_ascii, column.to_pylist()) for column in identity.columns]
        for row in zip(*columns, strict=True):
            text = f'["{modality}", {", ".join(row)}]'  # as json.dumps writes it
            digest = hashlib.sha256(text.encode()).digest()
            # A sum does not depend on the order of the rows, which tells a set's history, not its content.
            self._sum = (self._sum + int.from_bytes(digest)) % 2**256
        self.counts[modality] += len(identity)

    def hexdigest(self) -> str:
        """Return the fingerprint of everything that was added, 64 hexadecimal digits."""
        return f"{self._sum:064x}"
