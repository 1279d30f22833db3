"""What the rows of an embedding set become in a release: points with an id, a vector and a payload, or refusals."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from typing import Any
from uuid import UUID

import numpy as np

from alignment.metrics import Guarantee, with_seen
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.model.seen_items import SeenItems
from alignment.retrieval.kinds import HELD_OUT
from alignment.sets.rows import Rows
from alignment.value_kinds import kind_of
from alignment.vectors import FloatArray, invalid_rows
from connector.errors import Refusal
from connector.rejects import Reason
from connector.releases.aligned_payload import ALIGNED, check_finite, packed
from connector.releases.release import Release
from connector.stores.layout import PayloadKind
from connector.stores.payload_kinds import read_kinds
from connector.stores.points import Payload, Points, Record

Item = tuple[Modality, str]  # modality and key
NAMESPACE = UUID("6f1d3f0e-6c86-5a49-9d0c-0f3d8a7c1b52")
# What the payload field `split` says of an item: `HELD_OUT`, its group was held out from the fit; the fit saw its
# content; or neither. Alignments of the first releases do not record what their fit saw: all but held-out items count
# as seen.
FITTED, NEW = "fitted", "new"
CAPTION_KEY = re.compile(r"#\d+$")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


PAYLOAD = json.JSONDecoder(parse_constant=_refuse_constant)


@dataclass(frozen=True, slots=True)
class Projected:
    """Rows after an alignment, for every metric of it.

    Attributes:
        rows: those that can be stored, n of them.
        vectors: their aligned vectors (n, d).
        payloads: what their points carry under every metric.
        refused: reason and detail of the others, by their number among the rows that were given.
        left_out: why payload fields were left out of rows that can be stored, by the same numbers.
    """

    rows: Rows
    vectors: FloatArray
    payloads: list[Payload]
    refused: dict[int, Refusal]
    left_out: dict[int, list[Refusal]]

    def take(self, positions: Sequence[int]) -> "Projected":
        """Return the rows at these positions among those that can be stored; what is said of all others stays."""
        payloads = [self.payloads[position] for position in positions]
        return replace(self, rows=self.rows.take(positions), vectors=self.vectors[list(positions)], payloads=payloads)


def image_keys(text: str) -> list[str]:
    """Return the keys that the image of a text may have by the text's key, that of which it is a caption first.

    >>> image_keys("1F436#0"), image_keys("1F436")
    (['1F436', '1F436#0'], ['1F436'])
    """
    return [*dict.fromkeys((CAPTION_KEY.sub("", text), text))]


def point_id(modality: Modality, key: str) -> str:
    """Return the id of an item's point: a UUIDv5 of modality and key, so that a rerun overwrites, never duplicates.

    >>> point_id("image", "1F436") == point_id("image", "1F436") != point_id("text", "1F436")
    True
    """
    return point_ids(modality, [key])[0]


def point_ids(modality: Modality, keys: Sequence[str]) -> list[str]:
    """Return the ids of the points of n items: `uuid.uuid5`, in a quarter of its time."""
    prefix = NAMESPACE.bytes + f"{modality}\0".encode()
    digests = [sha1(prefix + key.encode(), usedforsecurity=False).digest()[:16] for key in keys]
    ids = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16).copy()
    ids[:, 6] = ids[:, 6] & 0x0F | 0x50  # version 5
    ids[:, 8] = ids[:, 8] & 0x3F | 0x80  # variant of RFC 9562
    digits = ids.tobytes().hex()
    texts = (digits[start : start + 32] for start in range(0, len(digits), 32))
    return [f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}" for text in texts]


def item_of(record: Record) -> Item | None:
    """Return the item that a stored point is of; None if its id does not follow from its payload: it is not ours."""
    modality, key = record.payload.get("modality"), record.payload.get("key")
    for known in MODALITIES:
        if modality == known and isinstance(key, str) and point_id(known, key) == record.id:
            return known, key
    return None


def project(alignment: Alignment, rows: Rows, indexes: Mapping[str, PayloadKind]) -> Projected:
    """Align rows and say what their points carry.

    Args:
        alignment: what projects them.
        rows: of one modality, with vectors of its encoder.
        indexes: how payload fields are indexed. Texts in them are read as that kind; a field that holds another is
            left out.
    """
    refused = {
        row: Refusal(Reason(reason), "the embedding cannot be aligned")
        for row, reason in invalid_rows(rows.vectors).items()
    }
    left_out: dict[int, list[Refusal]] = {}
    payloads = []
    for row, text in enumerate(rows.payloads):
        try:
            payload = _decoded(text)
            if not isinstance(payload, dict):
                raise ValueError(f"expected a JSON object, got {kind_of(payload)}")
            if refusals := read_kinds(payload, indexes):
                left_out[row] = refusals
            payloads.append(payload)
        except ValueError as error:
            payloads.append({})
            refused[row] = Refusal(Reason.PAYLOAD_NOT_JSON, str(error))
    sound = [row for row in range(len(rows)) if row not in refused]
    vectors = alignment.projections[rows.modality].unchecked(rows.vectors[sound])
    for row, reason in invalid_rows(vectors).items():
        refused[sound[row]] = Refusal(Reason(reason), "the embedding equals the training mean")
    if refused:
        kept = [row for row in range(len(sound)) if sound[row] not in refused]
        sound, vectors = [sound[row] for row in kept], vectors[kept]
    taken = rows.take(sound) if refused else rows
    split = splits(alignment, taken)
    described = [
        {
            **payloads[row],
            "key": rows.keys[row],
            "group": rows.groups[row],
            "modality": rows.modality,
            "content_sha256": rows.content_sha256[row],
            "split": own,
        }
        for row, own in zip(sound, split, strict=True)
    ]
    return Projected(taken, vectors, described, dict(sorted(refused.items())), left_out)


def _decoded(text: str) -> Any:
    """Decode a JSON document; a plain one, without white space around it, in half the time of `decode`."""
    try:
        value, end = PAYLOAD.raw_decode(text)
    except ValueError:
        end = -1
    return value if end == len(text) else PAYLOAD.decode(text)


def splits(alignment: Alignment, rows: Rows) -> list[str]:
    """Return what the payload field `split` says of each of n rows: the one place where this is decided.

    A held-out item is held out whatever its content: also where the fit saw the same content in another group.
    """
    held_out = alignment.card.hold_out.held_out(rows.groups).tolist()
    seen = [True] * len(rows)
    if alignment.seen:
        seen = alignment.seen.get(rows.modality, SeenItems()).holds(rows.content_sha256).tolist()
    return [HELD_OUT if held else FITTED if was else NEW for held, was in zip(held_out, seen, strict=True)]


def lowered(release: Release, projected: Projected) -> Points:
    """Return the points of `projected` as `release` stores them.

    Raises:
        VectorError: the release's metric cannot take the vectors.
        WeightsError: its weights have diverged.
    """
    rows, vectors, payloads = projected.rows, projected.vectors, projected.payloads
    lowering = release.lowerings[rows.modality]
    check_finite(release.metric, lowering.query(vectors[:1]))  # weights that only queries meet
    if lowering.marks_seen:
        vectors = with_seen(vectors, [payload["split"] == FITTED for payload in payloads])
    stored = lowering.item(vectors)
    check_finite(release.metric, stored)
    if release.guarantee is not Guarantee.EXACT:  # what rescoring needs
        payloads = [{**p, ALIGNED: packed(v)} for p, v in zip(payloads, vectors, strict=True)]
    return Points(rows.modality, point_ids(rows.modality, rows.keys), stored, payloads)
