"""Captions that are longer than the text encoder reads: what follows is not in their vectors."""

import json
import logging
from collections.abc import Mapping

from alignment.modality import Modality
from alignment.sets.writer import SetWriter
from connector.encoding.encoders import Encoder
from connector.encoding.failures import naming_encoder

_log = logging.getLogger(__name__)


def is_truncated(encoder: Encoder, text: str) -> bool | None:
    """Whether `encoder` reads only the beginning of `text`. None: it does not say."""
    if not encoder.says_truncated:
        return None
    encoder = encoder.loaded()
    with naming_encoder(encoder.spec, "failed to count the tokens of a text"):
        return encoder.truncates(text)


def say_truncated(count: int, encoders: Mapping[Modality, Encoder]) -> None:
    """Say how many captions of this pass are truncated, if any are."""
    if count:
        _log.warning(
            "%s longer than %s reads: the ends are in no vector, so captions that differ there alone are equal",
            "1 caption is" if count == 1 else f"{count:,} captions are",
            encoders["text"].spec,
        )


def count_truncated(
    writer: SetWriter, encoders: Mapping[Modality, Encoder], before: int | None, *, changed: bool, taken: int
) -> int | None:
    """Count the captions of a set that are truncated. What the numbers tell already needs no encoder.

    Args:
        writer: of the set.
        encoders: of the pass that ends.
        before: number in the set before the pass; None: unknown.
        changed: whether captions came or went.
        taken: truncated captions that the run took.

    Returns:
        The number; None: it is not known.
    """
    if (encoder := encoders.get("text")) is None:
        return None
    if before is not None and (not changed or before == taken == 0):
        return before
    if is_truncated(encoder, "") is None:
        return None
    payloads = (text for _, table in writer.identities("text") for text in table.column("payload").to_pylist())
    return sum(bool(is_truncated(encoder, json.loads(payload).get("caption", ""))) for payload in payloads)
