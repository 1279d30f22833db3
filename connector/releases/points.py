"""What the rows of an embedding set become in a release: points with an id, a vector and a payload, or refusals."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID, uuid5

from alignment.metrics import Guarantee
from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray, invalid_rows
from connector.rejects import Reason
from connector.releases.aligned_payload import ALIGNED, check_finite, packed
from connector.releases.release import Release
from connector.stores.contract import Payload, Points
from connector.stores.layout import PayloadKind

NAMESPACE = UUID("6f1d3f0e-6c86-5a49-9d0c-0f3d8a7c1b52")
HELD_OUT: Literal["held-out"] = "held-out"
FITTED = "fitted"


class _WrongKindError(ValueError):
    """A payload text that cannot be read as the kind that its field is indexed as."""

    def __init__(self, field: str, text: str, kind: PayloadKind):
        super().__init__(f"{field} is indexed as {kind}, got the text {text!r}")
        self.kind = kind


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
    """

    rows: Rows
    vectors: FloatArray
    payloads: list[Payload]
    refused: dict[int, tuple[Reason, str]]


def point_id(modality: Modality, key: str) -> str:
    """Return the id of an item's point: a UUIDv5 of modality and key, so that a rerun overwrites, never duplicates.

    >>> point_id("image", "1F436") == point_id("image", "1F436") != point_id("text", "1F436")
    True
    """
    return str(uuid5(NAMESPACE, f"{modality}\0{key}"))


def project(alignment: Alignment, rows: Rows, indexes: Mapping[str, PayloadKind]) -> Projected:
    """Align rows and say what their points carry.

    Args:
        alignment: what projects them.
        rows: of one modality, with vectors of its encoder.
        indexes: how payload fields are indexed: texts in them are read as that kind.
    """
    refused = {
        row: (Reason(reason), "the embedding cannot be aligned") for row, reason in invalid_rows(rows.vectors).items()
    }
    payloads = []
    for row, text in enumerate(rows.payloads):
        try:
            payload = PAYLOAD.decode(text)
            if not isinstance(payload, dict):
                raise ValueError(f"expected a JSON object, got {type(payload).__name__}")
            payloads.append(_typed(payload, indexes))
        except _WrongKindError as error:
            payloads.append({})
            refused[row] = (Reason(f"payload-not-{error.kind}"), str(error))
        except ValueError as error:
            payloads.append({})
            refused[row] = (Reason.PAYLOAD_NOT_JSON, str(error))
    sound = [row for row in range(len(rows)) if row not in refused]
    vectors = alignment.projections[rows.modality].unchecked(rows.vectors[sound])
    for row, reason in invalid_rows(vectors).items():
        refused[sound[row]] = (Reason(reason), "the embedding equals the training mean")
    if refused:
        kept = [row for row in range(len(sound)) if sound[row] not in refused]
        sound, vectors = [sound[row] for row in kept], vectors[kept]
    held_out = alignment.card.hold_out.held_out([rows.groups[row] for row in sound])
    described = [
        {
            **payloads[row],
            "key": rows.keys[row],
            "group": rows.groups[row],
            "modality": rows.modality,
            "content_sha256": rows.content_sha256[row],
            "split": HELD_OUT if held else FITTED,
        }
        for row, held in zip(sound, held_out, strict=True)
    ]
    return Projected(rows.take(sound) if refused else rows, vectors, described, dict(sorted(refused.items())))


def lowered(release: Release, projected: Projected) -> Points:
    """Return the points of `projected` as `release` stores them.

    Raises:
        VectorError: the release's metric cannot take the vectors.
        WeightsError: its weights have diverged.
    """
    rows, vectors, payloads = projected.rows, projected.vectors, projected.payloads
    lowering = release.lowerings[rows.modality]
    stored = lowering.item(vectors)
    check_finite(release.metric, stored)
    check_finite(release.metric, lowering.query(vectors[:1]))  # weights that only queries meet
    if release.guarantee is not Guarantee.EXACT:  # what rescoring needs
        payloads = [{**p, ALIGNED: packed(v)} for p, v in zip(payloads, vectors, strict=True)]
    return Points(rows.modality, [point_id(rows.modality, key) for key in rows.keys], stored, payloads)


def _typed(payload: dict[str, Any], indexes: Mapping[str, PayloadKind]) -> dict[str, Any]:
    """Read texts as the kind that their field is indexed as: a CSV holds nothing but texts, and no filter finds those.

    Raises:
        _WrongKindError: a text is not of that kind.
    """
    for name, kind in indexes.items():
        if isinstance(text := payload.get(name), str):
            try:
                payload[name] = KINDS[kind](text)
            except (KeyError, ValueError):
                raise _WrongKindError(name, text, kind) from None
    return payload


def _finite(text: str) -> float:
    if "_" in text or not math.isfinite(value := float(text)):
        raise ValueError
    return value


def _whole(text: str) -> int:
    # Qdrant's integers have 64 bits, and Python reads 1_000 as a number where nobody else does.
    if "_" in text or not -(1 << 63) <= (value := int(text)) < 1 << 63:
        raise ValueError
    return value


KINDS: Mapping[PayloadKind, Callable[[str], Any]] = {
    "keyword": str,
    "integer": _whole,
    "float": _finite,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}
