"""Captions on images: the first caption of an item is payload of its image too, unless a release leaves it out."""

import json
from dataclasses import replace

from alignment.modality import MODALITIES, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.shards import read_columns
from connector.releases.release import Release

CAPTION = "caption"


def release_rows(release: Release, rows: Rows) -> Rows:
    """Return rows of an embedding set as a release carries them; the ledger records the digest of these.

    Captions of texts stay: they say what a text point is.
    """
    if rows.modality != "image" or release.caption_payload:
        return rows
    return replace(rows, payloads=[_without_caption(payload) for payload in rows.payloads])


def _without_caption(payload: str) -> str:
    """Leave the caption out of a payload. The rest is written as sets write it, so that digests stay comparable."""
    try:
        fields = json.loads(payload)
    except ValueError:  # whoever projects the row refuses it
        return payload
    if not isinstance(fields, dict) or CAPTION not in fields:
        return payload
    del fields[CAPTION]
    return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def captions_missing(embedding_set: EmbeddingSet) -> bool:
    """Say whether images of a set lack the captions that its texts have, because an earlier version encoded them.

    The first shards are looked at, and no others: they are the oldest.
    """
    payloads = {modality: _first_payloads(embedding_set, modality) for modality in MODALITIES}
    captioned = {key.rpartition("#")[0] for key, payload in payloads["text"].items() if CAPTION in payload}
    return any(CAPTION not in payload for key, payload in payloads["image"].items() if key in captioned)


def _first_payloads(embedding_set: EmbeddingSet, modality: Modality) -> dict[str, dict[str, object]]:
    for shard in embedding_set.shards(modality)[:1]:
        table = read_columns(shard, ["key", "payload"])
        return {key: _fields(payload) for key, payload in zip(*table.to_pydict().values(), strict=True)}
    return {}


def _fields(payload: str) -> dict[str, object]:
    try:
        fields = json.loads(payload)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
