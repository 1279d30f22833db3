"""Captions that are longer than the text encoder reads: what follows is not in their vectors."""

import json
import logging
from collections.abc import Collection, Mapping

from alignment.modality import Modality
from alignment.sets.writer import SetWriter
from connector.encoding.encoders import Encoder

_log = logging.getLogger(__name__)


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
    if encoder is None or encoder.truncates("") is None:
        return None
    if card.complete and not changed and card.truncated is not None:
        return card.truncated
    payloads = (text for _, table in writer.identities("text") for text in table.column("payload").to_pylist())
    return sum(bool(encoder.truncates(json.loads(payload).get("caption", ""))) for payload in payloads)
