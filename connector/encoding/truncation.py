"""Captions that are longer than the text encoder reads: what follows is not in their vectors."""

import json
import logging
from collections.abc import Collection, Mapping

from alignment.modality import Modality
from alignment.sets.writer import SetWriter
from connector.encoding.encoders import Encoder
from connector.encoding.failures import naming_encoder

_log = logging.getLogger(__name__)


def is_truncated(encoder: Encoder, text: str) -> bool | None:
    """Whether `encoder` reads only the beginning of `text`. None: it does not say."""
    with naming_encoder(encoder.spec, "failed to count the tokens of a text"):
        return encoder.truncates(text)


def say_truncated(count: int, encoders: Mapping[Modality, Encoder]) -> None:
    """Say how many captions of this pass are truncated, if any are."""
    if count:
        _log.warning(
            "%d of these captions are longer than %s reads: their ends are not in their vectors, so captions that "
            "differ there alone are equal",
            count,
            encoders["text"].spec,
        )


def count_truncated(writer: SetWriter, encoders: Mapping[Modality, Encoder], changed: Collection[str]) -> int | None:
    """Count the captions of a set that are truncated; `changed` are shards that lost rows. None: it is not known."""
    encoder, card = encoders.get("text"), writer.card
    if encoder is None or is_truncated(encoder, "") is None:
        return None
    if card.complete and not changed and card.truncated is not None:
        return card.truncated
    payloads = (text for _, table in writer.identities("text") for text in table.column("payload").to_pylist())
    return sum(bool(is_truncated(encoder, json.loads(payload).get("caption", ""))) for payload in payloads)
