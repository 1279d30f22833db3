"""Manifests as tests write them, and corpora as tests read them."""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.corpora.formats import FORMATS, open_corpus
from connector.corpora.items import Entry, Item, PassedOver, Remark
from connector.rejects import Reject

Records = list[dict[str, Any]]


# How the files of each reader are written. Add a line for a new reader. CSV has no types, only texts.


def write_jsonl(path: Path, records: Records) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_csv(path: Path, records: Records) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        names = list(dict.fromkeys(name for record in records for name in record))
        dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
        out = csv.DictWriter(file, names, restval="", dialect=dialect)
        out.writeheader()
        out.writerows(records)


def write_parquet(path: Path, records: Records) -> None:
    names = list(dict.fromkeys(name for record in records for name in record))
    pq.write_table(pa.table({name: [record.get(name) for record in records] for name in names}), path)


WRITERS: dict[str, Callable[[Path, Records], None]] = {
    ".jsonl": write_jsonl,
    ".ndjson": write_jsonl,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".parquet": write_parquet,
}
SUFFIXES = {suffix: reader for reader in FORMATS.values() for suffix in reader.suffixes}
every_reader = pytest.mark.parametrize("suffix", SUFFIXES)
typed_reader = pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in (".csv", ".tsv")])


def read(path: Path) -> list[Entry]:
    return list(open_corpus(path))


def write_rows(directory: Path, suffix: str, records: Iterable[Mapping[str, Any]]) -> Path:
    path = directory / f"manifest{suffix}"
    WRITERS[suffix](path, [dict(record) for record in records])
    return path


def write_lines(directory: Path, *lines: str | bytes | dict[str, Any]) -> Path:
    path = directory / "manifest.jsonl"
    encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in encoded))
    return path


def items(entries: Iterable[Entry]) -> list[Item]:
    return [entry for entry in entries if isinstance(entry, Item)]


def rejects(entries: Iterable[Entry]) -> list[Reject]:
    return [entry for entry in entries if isinstance(entry, Reject)]


def placed(entries: Iterable[Entry]) -> list[Item | Reject]:
    """What is in a row of its file."""
    return [entry for entry in entries if isinstance(entry, Item | Reject)]


def remarks(entries: Iterable[Entry]) -> list[Remark]:
    return [entry for entry in entries if isinstance(entry, Remark)]


def passed_over(entries: Iterable[Entry]) -> list[tuple[str, bool]]:
    """The names of the files that were passed over, and whether they may hide items."""
    return [(Path(e.name).name, e.may_hide) for e in entries if isinstance(e, PassedOver) and e.counted]


def reasons(entries: Iterable[Entry]) -> list[tuple[int, str]]:
    return [(reject.position, reject.reason) for reject in rejects(entries)]


no_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


# Words of Python's own errors, which say nothing to people who have a file of data before them.
PYTHON = re.compile(
    r"NoneType|<class|\bdict\b|\bstr\b|\bint\b|\bfloat\b|\bcodec\b|invalid literal|serializable|object has|unpack"
    r"|subscriptable|\w+Error\b|index out of"
)
