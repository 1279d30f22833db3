"""What a worker makes of a unit, as Arrow record batches: they travel between processes, and lie in staging folders.

A batch holds whole groups of `connector.encoding.unit_encoder`, in order; `group` numbers them in their batch. Columns
that a kind of row does not have are null.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from alignment.arrow import look_for_pandas
from alignment.vectors import FloatArray
from connector.corpora.items import Item, PassedOver, Remark
from connector.encoding.unit_encoder import Content, EncodedItem, Group, Row
from connector.rejects import Reason, Reject

BATCH_ROWS = 1024

SCHEMA = pa.schema(
    [
        ("group", pa.int32()),
        ("kind", pa.string()),  # item, reject, passed-over or remark
        ("modality", pa.string()),
        ("key", pa.string()),
        ("item_group", pa.string()),
        ("payload", pa.string()),  # JSON
        ("text", pa.string()),  # of a caption or a remark, or the path of an image that is missing
        (
            "source",
            pa.string(),
        ),  # or the name of what was passed over, or where a remark is met first
        ("position", pa.int64()),
        ("line", pa.int64()),
        ("reached", pa.int64()),
        ("keyed_by_content", pa.bool_()),
        ("sha256", pa.binary(32)),  # of the content; null: the item was refused, or left out
        ("vector", pa.list_(pa.float32())),  # null: the set holds it
        ("copied", pa.bool_()),
        ("truncated", pa.bool_()),
        ("stage", pa.string()),  # of a reject; of an item that was refused, with `reason` and `detail`
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("may_hide", pa.bool_()),
        ("counted", pa.bool_()),
        ("count", pa.int64()),  # of a remark
    ]
)


def to_batches(groups: Iterable[Group]) -> Iterator[pa.RecordBatch]:
    """Write groups as batches of about `BATCH_ROWS` rows."""
    rows: list[dict[str, Any]] = []
    vectors: list[FloatArray | None] = []
    number = 0
    for group in groups:
        for row in group:
            rows.append({"group": number, **_columns(row)})
            content = row.content if isinstance(row, EncodedItem) else None
            vectors.append(content.vector if isinstance(content, Content) else None)
        number += 1
        if len(rows) >= BATCH_ROWS:
            yield _batch(rows, vectors)
            rows, vectors, number = [], [], 0
    if rows:
        yield _batch(rows, vectors)


def from_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[Group]:
    """Read the groups of batches that `to_batches` wrote."""
    for batch in batches:
        columns = [name for name in SCHEMA.names if name != "vector"]
        rows = batch.select(columns).to_pylist()
        read = zip(rows, _vectors(batch.column("vector")), strict=True)
        for _, of_group in groupby(read, key=lambda pair: pair[0]["group"]):
            yield [_row(row, vector) for row, vector in of_group]


def _columns(row: Row) -> dict[str, Any]:
    if isinstance(row, Remark):
        return {"kind": "remark", "text": row.text, "count": row.count, "source": row.first}
    if isinstance(row, PassedOver):
        hidden = {"may_hide": row.may_hide, "counted": row.counted}
        return {"kind": "passed-over", "source": row.name, "position": row.position, **hidden}
    if isinstance(row, Reject):
        return {
            "kind": "reject",
            **{name: getattr(row, name) for name in ("source", "position", "key", "modality", "reached")},
            **_why(row),
        }
    item, content = row.item, row.content
    columns = {
        "kind": "item",
        **{name: getattr(item, name) for name in ("modality", "key", "source", "position", "line", "reached")},
        "item_group": item.group,
        "payload": row.payload,
        "text": item.content or None,
        "keyed_by_content": item.keyed_by_content,
    }
    if isinstance(content, Reject):
        return columns | _why(content)
    if content is None:
        return columns
    sha256 = bytes.fromhex(content.sha256)
    return columns | {"sha256": sha256, "copied": content.copied, "truncated": content.truncated}


def _why(reject: Reject) -> dict[str, Any]:
    return {"stage": reject.stage, "reason": str(reject.reason), "detail": reject.detail}


def _batch(rows: Sequence[dict[str, Any]], vectors: Sequence[FloatArray | None]) -> pa.RecordBatch:
    look_for_pandas()
    lengths = np.array([0 if vector is None else len(vector) for vector in vectors])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    held = [vector for vector in vectors if vector is not None]
    values = pa.array(np.concatenate(held) if held else np.empty(0), pa.float32())
    missing = pa.array([vector is None for vector in vectors], pa.bool_())
    vector_column = pa.ListArray.from_arrays(offsets, values, mask=missing)
    columns = [
        vector_column if field.name == "vector" else pa.array([row.get(field.name) for row in rows], field.type)
        for field in SCHEMA
    ]
    return pa.record_batch(columns, SCHEMA)


def _vectors(column: pa.ListArray) -> Iterator[FloatArray | None]:
    look_for_pandas()
    values = column.values.to_numpy()
    offsets = column.offsets.to_numpy()
    present = column.is_valid().to_numpy(zero_copy_only=False)
    for number, there in enumerate(present):
        yield values[offsets[number] : offsets[number + 1]] if there else None


def _row(row: dict[str, Any], vector: FloatArray | None) -> Row:
    if row["kind"] == "remark":
        return Remark(row["text"], row["count"], row["source"])
    if row["kind"] == "passed-over":
        return PassedOver(row["source"], row["position"], row["may_hide"], row["counted"])
    refused = None
    if row["reason"] is not None:
        place = row["source"], row["position"], row["stage"], Reason(row["reason"]), row["detail"]
        refused = Reject(*place, row["key"], row["modality"], row["reached"])
    if row["kind"] == "reject" and refused is not None:
        return refused
    item = Item(
        row["modality"],
        row["key"],
        row["item_group"],
        row["text"] or "",
        json.loads(row["payload"]),
        row["source"],
        row["position"],
        row["line"],
        row["keyed_by_content"],
        row["reached"],
    )
    content: Content | Reject | None = refused
    if row["sha256"] is not None:
        content = Content(row["sha256"].hex(), vector, row["copied"], row["truncated"])
    return EncodedItem(item, row["payload"], content)
