"""What is done with one item before its encoder gets it: read, hashed, decoded and preprocessed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment.modality import Modality
from connector.corpora.images import ImageRejectedError, decode, reading
from connector.corpora.items import Entry, Item, Vector
from connector.encoding.encoders import Encoder
from connector.encoding.set_index import SetIndex
from connector.errors import EncoderError
from connector.rejects import Reason, Reject, Stage, at_line
from connector.resources import raise_lack


@dataclass(frozen=True, slots=True)
class Content:
    """The hash of an item, with its input for the encoder.

    Content that already has a vector in the set is not prepared. Texts are prepared later, by one thread, because
    tokenizers are not thread-safe.
    """

    sha256: str
    prepared: Any = None


def read_entry(
    entry: Entry, encoders: Mapping[Modality, Encoder], index: SetIndex, max_pixels: int
) -> Content | Reject | None:
    """Read, hash and prepare one item; runs in a thread."""
    if not isinstance(entry, Item) or entry.modality not in encoders:
        return None
    if isinstance(entry.content, str):
        return Content(hashlib.sha256(entry.content.encode()).hexdigest())
    if isinstance(entry.content, Vector):
        values = entry.content.values
        return Content(hashlib.sha256(values).hexdigest(), np.frombuffer(values, "<f4"))
    return read_image_of(entry, entry.content, encoders[entry.modality], max_pixels, index)


def read_image_of(
    item: Item, image: Path | bytes, encoder: Encoder, max_pixels: int, index: SetIndex | None = None
) -> Content | Reject:
    """Read and hash an image, and prepare it unless `index` knows its hash."""
    try:
        with reading(image) as file:
            sha256 = hashlib.sha256(file).hexdigest()
            if index is not None and index.knows(item.modality, sha256):
                return Content(sha256)
            return prepare(item, sha256, file, encoder, max_pixels)
    except ImageRejectedError as error:
        return reject_of(item, "read", error.reason, str(error))


def prepare(item: Item, sha256: str, content: str | bytes, encoder: Encoder, max_pixels: int) -> Content | Reject:
    """Decode and preprocess the file of an image, or preprocess a text.

    Raises:
        OutOfResourcesError: there is not enough memory, which says nothing about the item.
        EncoderError: preprocessing raised SystemExit, which is about no item either.
        ModalignError: the encoder was not loaded yet, and cannot be.
    """
    encoder = encoder.loaded()  # what that raises is about no item
    try:
        loaded = content if isinstance(content, str) else decode(content, max_pixels)
        return Content(sha256, encoder.prepare(item.modality, loaded))
    except ImageRejectedError as error:
        return reject_of(item, "decode", error.reason, str(error))
    except SystemExit as error:
        what = f"{item.modality} {item.key!r}"
        raise EncoderError(f"encoder {encoder.spec} failed to prepare {what}: SystemExit: {error}") from error
    except Exception as error:  # noqa: BLE001  preprocessing may raise anything, which rejects the item alone
        raise_lack(error, f"preparing {item.modality} {item.key!r}")
        return reject_of(item, "encode", Reason.PREPROCESSING_FAILED, f"{type(error).__name__}: {error}")


def reject_of(item: Item, stage: Stage, reason: Reason, detail: str) -> Reject:
    """Return the reject of an item."""
    return Reject(item.source, item.position, stage, reason, at_line(item.line, detail), item.key, item.modality)
