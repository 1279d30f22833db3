"""What is done with one item before its encoder gets it: read, hashed, decoded and preprocessed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Buffer

from alignment.modality import Modality
from connector.corpora.images import ImageRejectedError, decode, reading
from connector.corpora.items import Entry, Item, Vector
from connector.encoding.encoders import Encoder
from connector.encoding.known_contents import KnownContents
from connector.errors import EncoderError
from connector.rejects import Reason, Reject, Stage, at_line
from connector.resources import raise_lack


@dataclass(frozen=True, slots=True)
class Prepared:
    """The hash of an item, with its input for the encoder.

    Attributes:
        sha256: of the content.
        model_input: what the encoder takes. None: the set holds a vector of the content, or it is a text. Texts are
            prepared later, by one thread, because tokenizers are not thread-safe.
    """

    sha256: str
    model_input: Any = None


def read_entry(
    entry: Entry, encoders: Mapping[Modality, Encoder], known: KnownContents, max_pixels: int
) -> Prepared | Reject | None:
    """Read, hash and prepare one item; of an image that is `known`, only read and hash; runs in a thread."""
    if not isinstance(entry, Item) or entry.modality not in encoders:
        return None
    if isinstance(entry.content, str):
        return Prepared(_sha256(entry.content))
    if isinstance(entry.content, Vector):
        return Prepared(_sha256(entry.content), np.frombuffer(entry.content.values, "<f4"))
    try:
        with reading(entry.content) as file:
            sha256 = _sha256(file)
            if known.among(entry.modality, [sha256]):
                return Prepared(sha256)
            return prepare(entry, sha256, file, encoders[entry.modality], max_pixels)
    except ImageRejectedError as error:
        return reject_of(entry, "read", error.reason, str(error))


def digest_of(entry: Entry) -> str | None:
    """Return the SHA-256 of the content of an entry; None: it is no item, or its image cannot be read."""
    if not isinstance(entry, Item):
        return None
    if isinstance(entry.content, str | Vector):
        return _sha256(entry.content)
    try:
        with reading(entry.content) as file:
            return _sha256(file)
    except ImageRejectedError:
        return None


def _sha256(content: str | Vector | Buffer) -> str:
    if isinstance(content, Vector):
        return content.sha256 or _sha256(content.values)
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def prepare(item: Item, sha256: str, content: str | bytes, encoder: Encoder, max_pixels: int) -> Prepared | Reject:
    """Decode and preprocess the file of an image, or preprocess a text.

    Raises:
        OutOfResourcesError: there is not enough memory, which says nothing about the item.
        EncoderError: preprocessing raised SystemExit, which is about no item either.
        ModalignError: the encoder was not loaded yet, and cannot be.
    """
    encoder = encoder.loaded()  # what that raises is about no item
    try:
        loaded = content if isinstance(content, str) else decode(content, max_pixels)
        return Prepared(sha256, encoder.prepare(item.modality, loaded))
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


def duplicate(item: Item) -> Reject:
    """Return the reject of an item whose key the corpus has before."""
    if item.keyed_by_content:
        detail = (
            "the key is the SHA-256 of the picture, and a row further above has the same: sort the rows by picture, "
            "because those of one key must follow each other, or name a column of other keys with --key"
        )
    else:
        detail = (
            f"the corpus has {item.modality} key {item.key!r} before; make keys unique, or name a column of others "
            "with --key"
        )
    return reject_of(item, "read", Reason.KEY_DUPLICATE, detail)
