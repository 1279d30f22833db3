"""Rows of a Ray dataset on their way into an embedding set: checked and staged by tasks, read back as a corpus."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from alignment.arrow import look_for_pandas
from alignment.durable import write_durably
from alignment.modality import MODALITIES, Modality
from alignment.names import did_you_mean
from alignment.value_kinds import kind_of
from connector.corpora.items import Corpus, Item, Vector
from connector.corpora.opening import parquet_file
from connector.corpora.parquet_manifest import records
from connector.corpora.row_checks import (
    RowError,
    check_caption,
    check_key,
    check_texts,
    parse_json,
    storable,
    text_field,
    without_collisions,
)
from connector.corpora.vector_tables import Vectors
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

BATCH_ROWS = 1024
REQUIRED = ("key", "modality", "vector")
OPTIONAL = ("group", "payload", "content_sha256")
SHA256 = re.compile(r"[0-9a-f]{64}")
VECTOR_DETAIL = "expected a finite vector of dimension {} with a norm above 0"
STAGED = pa.schema(
    [
        *((name, pa.string()) for name in ("modality", "key", "group", "content_sha256", "payload")),
        ("vector", pa.large_binary()),
        *((name, pa.string()) for name in ("reason", "detail")),  # null but for rejects
    ]
)


def check_columns(schema: pa.Schema) -> None:
    """Raise a `CorpusError` unless a table has the columns of rows with vectors, and no other ones."""
    names, known = schema.names, (*REQUIRED, *OPTIONAL)
    expected = f"expected {', '.join(REQUIRED)} and, if there are any, {', '.join(OPTIONAL)}"
    if missing := [name for name in REQUIRED if name not in names]:
        raise CorpusError(f"the dataset has no column {', '.join(missing)}: {expected}; got {printable(str(names))}")
    if strange := [name for name in names if name not in known]:
        raise CorpusError(
            f"the dataset has a column {printable(strange[0])!r}{did_you_mean(strange[0], known)}: {expected}; put "
            "other fields into the payload, a struct or a JSON text"
        )
    kind = _lists(schema.field("vector").type)
    if kind is None:
        raise CorpusError(
            f"the dataset's column 'vector' is of type {schema.field('vector').type}: expected lists or tensors of "
            "float16, float32 or float64, one dimension a row"
        )
    if "payload" in names and not _is_payload(payload := schema.field("payload").type):
        raise CorpusError(f"the dataset's column 'payload' is of type {payload}: expected a struct, or JSON as text")


def staged(table: pa.Table, dims: Mapping[Modality, int]) -> pa.Table:
    """Check rows of a dataset; return them in the layout `STAGED`: rows to store, and rejects.

    Args:
        table: columns as `check_columns` asks for.
        dims: dimension of the vectors, by modality.
    """
    rows: list[dict[str, Any]] = []
    for batch in table.to_batches(BATCH_ROWS):
        vectors = {modality: Vectors.of_lists(_vector_lists(batch), dim) for modality, dim in dims.items()}
        others = batch.select([name for name in batch.schema.names if name != "vector"])
        for number, record in enumerate(records(others)):
            rows += _checked(record, number, vectors)
    look_for_pandas()
    return pa.Table.from_pylist(rows, STAGED)


def stage(directory: Path, table: pa.Table, dims: Mapping[Modality, int]) -> str:
    """Check the rows of a block, write them to a new file in `directory`, and return its name.

    Its name begins with a hash of what it holds, so that the order of files does not depend on which task was quickest.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(staged(table, dims), sink, write_page_checksum=True)
    content = sink.getvalue()
    name = f"{hashlib.sha256(content).hexdigest()[:16]}-{uuid4().hex}.parquet"
    write_durably(directory / name, content)
    return name


@dataclass(frozen=True, slots=True)
class StagedRows(Corpus):
    """Rows that tasks have staged, as a corpus whose items are vectors.

    Attributes:
        files: names of files in `path`, in the order to read them.
        name: what rejects are said to come from.
    """

    format = "staged-rows"

    files: tuple[str, ...] = ()
    name: str = "dataset"

    @override
    def total(self) -> int:
        count = 0
        for name in self.files:
            with parquet_file(self.path / name) as file:
                count += int(file.metadata.num_rows)
        return count

    def modalities(self) -> set[Modality]:
        """Return the modalities that rows have."""
        found: set[Modality] = set()
        for name in self.files:
            with parquet_file(self.path / name) as file:
                found |= set(file.read(columns=["modality"]).column(0).unique().drop_null().to_pylist())
        return found

    @override
    def with_captions(self) -> Iterator[Item | Reject]:
        """Yield the entries: payloads are what the dataset gave."""
        return iter(self)

    @override
    def __iter__(self) -> Iterator[Item | Reject]:
        position = 0
        for name in self.files:
            with parquet_file(self.path / name) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    for row in batch.to_pylist():
                        position += 1
                        yield self._entry(row, position)

    def _entry(self, row: Mapping[str, Any], position: int) -> Item | Reject:
        where, modality, key = (self.name, position), row["modality"], row["key"]
        if row["reason"] is not None:
            return Reject(*where, "read", Reason(row["reason"]), row["detail"], key, modality)
        content = Vector(row["vector"], row["content_sha256"])
        return Item(modality, key, row["group"], content, json.loads(row["payload"]), *where)


def _checked(record: dict[str, Any], number: int, vectors: Mapping[Modality, Vectors]) -> Iterator[dict[str, Any]]:
    """Yield a row as it is staged, after the rejects of its fields; or its reject."""
    named, key = record.get("modality"), record.get("key")
    modality = next((modality for modality in MODALITIES if modality == named), None)
    shown: dict[str, Any] = {"modality": modality}
    try:
        if modality not in vectors or modality is None:
            raise RowError(
                Reason.ROW_UNREADABLE,
                f"expected the modality {' or '.join(vectors)}, of which the sink has the encoder, got "
                f"{printable(repr(named))}",
            )
        row, faults = _fields(record)
    except RowError as error:
        shown["key"] = None if key is None or isinstance(key, RowError) else printable(str(key))
        yield {**shown, "reason": str(error.reason), "detail": printable(str(error))}
        return
    shown["key"] = row["key"]
    for fault in faults:
        yield {**shown, "reason": str(fault.reason), "detail": str(fault)}
    own = vectors[modality]
    if reason := own.faults.get(number):
        yield {**shown, "reason": str(reason), "detail": VECTOR_DETAIL.format(own.values.shape[1])}
    else:
        yield {**row, "modality": modality, "vector": own.values[number].tobytes()}


def _fields(record: dict[str, Any]) -> tuple[dict[str, Any], list[RowError]]:
    """Check key, group, hash and payload of a record; return them, and errors of fields that are left out."""
    given = {name: value for name, value in record.items() if value is not None}
    payload = _payload(given.pop("payload", None))
    key, group = check_key(given), text_field(given, "group")
    sha256 = given.get("content_sha256")
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        detail = f"expected 64 hexadecimal digits in 'content_sha256', got {printable(repr(sha256))}"
        raise RowError(Reason.ROW_UNREADABLE, detail)
    named = {"image": text_field(payload, "image")}
    if (caption := payload.pop("caption", None)) is not None:
        named["caption"] = check_caption(caption)
    check_texts(key, group, named["image"])
    kept, faults = storable(without_collisions(payload))
    fields = {name: text for name, text in named.items() if text} | kept
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True)
    return {"key": key, "group": group or key, "content_sha256": sha256, "payload": text}, faults


def _payload(value: Any) -> dict[str, Any]:
    """Return a payload, a struct or a JSON object as text. A field of a struct that is null is missing."""
    if isinstance(value, RowError):
        raise value
    if not isinstance(value, str):
        return {name: inner for name, inner in dict(value or {}).items() if inner is not None}
    try:
        fields = parse_json(value)
    except ValueError as error:
        raise RowError(Reason.ROW_UNREADABLE, f"payload: {error}") from error
    if not isinstance(fields, dict):
        raise RowError(Reason.ROW_UNREADABLE, f"payload: expected a JSON object, got {kind_of(fields)}")
    return fields


def _is_payload(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_struct, pa.types.is_map, pa.types.is_null)
    return any(test(kind) for test in tests)


def _lists(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of lists of floats that a column of vectors is, or is stored as; None: it holds none."""
    if isinstance(kind, pa.BaseExtensionType):
        if len(getattr(kind, "shape", [0])) != 1:
            return None
        kind = kind.storage_type
    if pa.types.is_struct(kind) and kind.get_field_index("data") >= 0:  # Ray's tensors of various shapes
        kind = kind.field("data").type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind if any(test(kind) for test in lists) and pa.types.is_floating(kind.value_type) else None


def _vector_lists(batch: pa.RecordBatch) -> pa.Array:
    column = batch.column("vector")
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    return column.field("data") if pa.types.is_struct(column.type) else column
