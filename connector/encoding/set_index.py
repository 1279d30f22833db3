"""An index of the rows of an embedding set, so that no content is encoded twice."""

import hashlib
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from alignment.modality import MODALITIES, Modality
from alignment.sets.rows import IDENTITY, Rows
from alignment.sets.shards import read_columns, read_shard, shard_paths
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray
from connector.encoding.known_contents import DIGEST, Digests, KnownContents, digests

CACHE_KB = 1 << 16  # of the index, in memory
LOOKED_UP_AT_ONCE = 256
# Without INDEXED BY, SQLite uses the primary key and reads every row of the modality.
HELD_BY_CONTENT = "current AS held INDEXED BY by_content"
REFUSED = ".refused"  # folder of a set, see `connector.encoding.refused_vectors`


@dataclass(frozen=True, slots=True)
class Gone:
    """Rows of a modality whose items a pass has not seen.

    Attributes:
        rows: number of them.
        of: rows that the set held before the pass.
    """

    rows: int
    of: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.rows / self.of


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row of the set: the hash of its content, and the hash of its group and payload."""

    content_sha256: bytes
    description: bytes

    def matches(self, content_sha256: str, group: str, payload: str) -> bool:
        """Whether an item equals this row."""
        return (bytes.fromhex(content_sha256), _description(group, payload)) == (self.content_sha256, self.description)


class SetIndex:
    """Rows of the set by key and by content hash, and the keys that this pass has seen.

    The index is a temporary SQLite file that goes with the process: memory is bounded at any corpus size, and a kill
    leaves nothing to repair. Many keys or contents are looked up by one statement, because each statement costs as much
    as several rows.

    Attributes:
        known: the contents that there were vectors of before the pass, in the set or of refused items. `find_vectors`
            or `find_refused` finds them until the pass ends.
    """

    def __init__(self, writer: SetWriter):
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(
            f"""
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            PRAGMA cache_size = -{CACHE_KB};
            CREATE TABLE current (
                modality TEXT, key TEXT, content BLOB, description BLOB, shard INTEGER, row INTEGER,
                PRIMARY KEY (modality, key)
            ) WITHOUT ROWID;
            CREATE INDEX by_content ON current (modality, content, shard, row);
            CREATE TABLE superseded (modality TEXT, content BLOB, shard INTEGER, row INTEGER);
            CREATE INDEX superseded_by_content ON superseded (modality, content, shard, row);
            CREATE TABLE seen (modality TEXT, key TEXT, PRIMARY KEY (modality, key)) WITHOUT ROWID;
            CREATE TABLE refused (
                modality TEXT, content BLOB, shard INTEGER, row INTEGER, again INTEGER, PRIMARY KEY (modality, content)
            ) WITHOUT ROWID;
            """
        )
        self._directory = writer.path
        self._shards: list[str] = []  # their names, by number
        self._cached: tuple[tuple[Modality, int], FloatArray] | None = None
        self.known = KnownContents({modality: self._read(writer, modality) for modality in MODALITIES})
        count = "SELECT modality, count(*) FROM current GROUP BY modality"
        self._rows_before: dict[Modality, int] = dict(self._database.execute(count))

    def _read(self, writer: SetWriter, modality: Modality) -> Digests:
        """Index the rows and the refused items of a modality.

        Returns:
            The sorted hashes of their contents, in memory that is a file's.
        """
        with tempfile.TemporaryFile() as file:
            for shard, table in writer.identities(modality):
                columns = {name: table.column(name).to_pylist() for name in IDENTITY}
                self._insert(modality, shard.name, list(zip(*columns.values(), strict=True)))
                file.write(digests(columns["content_sha256"]).tobytes())
            for shard in shard_paths(writer.path / REFUSED, modality):
                contents = read_columns(shard, ["content_sha256"]).column("content_sha256").to_pylist()
                self.add_refused(shard, modality, contents, again=False)
                file.write(digests(contents).tobytes())
            if not (size := file.tell()):
                return np.empty(0, DIGEST)
            file.flush()
            known = np.memmap(file, DIGEST, "r+", shape=(size // DIGEST.itemsize,))
        known.sort()
        return known

    def add(self, shard: Path, rows: Rows) -> bool:
        """Add a new shard, which supersedes older rows of its keys; return whether all keys are new."""
        identity = zip(rows.keys, rows.groups, rows.content_sha256, rows.payloads, strict=True)
        return self._insert(rows.modality, shard.name, list(identity))

    def _insert(self, modality: Modality, shard: str, identity: Sequence[tuple[str, str, str, str]]) -> bool:
        number = len(self._shards)
        self._shards.append(shard)
        superseded = self._among(
            "SELECT key, content, shard, row FROM current WHERE modality = ? AND key IN (VALUES {})",
            modality,
            [key for key, *_ in identity],
        )
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO superseded VALUES (?, ?, ?, ?)", ((modality, *place) for _, *place in superseded)
        )
        self._database.executemany(
            "INSERT OR REPLACE INTO current VALUES (?, ?, ?, ?, ?, ?)",
            (
                (modality, key, bytes.fromhex(content), _description(group, payload), number, row)
                for row, (key, group, content, payload) in enumerate(identity)
            ),
        )
        self._database.execute("COMMIT")
        return not superseded

    def _among(self, query: str, modality: Modality, values: Sequence[str | bytes]) -> list[tuple[Any, ...]]:
        """Return the rows of a query about a modality and values, which stand in the place of `{}`."""
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(values), LOOKED_UP_AT_ONCE):
            asked = values[start : start + LOOKED_UP_AT_ONCE]
            found += self._database.execute(query.format(", ".join(["(?)"] * len(asked))), (modality, *asked))
        return found

    def first_times(self, modality: Modality, keys: Sequence[str]) -> list[bool]:
        """Mark keys as seen by this pass; return of each whether it was not seen before, by itself among them too."""
        if not keys:
            return []
        seen = "SELECT key FROM seen WHERE modality = ? AND key IN (VALUES {})"
        met = {key for (key,) in self._among(seen, modality, keys)}
        first = []
        for key in keys:
            first.append(key not in met)
            met.add(key)
        self._database.execute("BEGIN")
        new = ((modality, key) for key, is_first in zip(keys, first, strict=True) if is_first)
        self._database.executemany("INSERT INTO seen VALUES (?, ?)", new)
        self._database.execute("COMMIT")
        return first

    def find_keys(self, modality: Modality, keys: Sequence[str]) -> dict[str, StoredRow]:
        """Return the rows with these keys, by key."""
        query = "SELECT key, content, description FROM current WHERE modality = ? AND key IN (VALUES {})"
        return {key: StoredRow(*row) for key, *row in self._among(query, modality, keys)}

    def find_vectors(self, modality: Modality, contents: Sequence[str]) -> dict[str, FloatArray]:
        """Return the vectors (d,) of those contents, by SHA-256, that the set holds one of.

        Rows that are superseded have theirs until `Encoding.finish` drops them.
        """
        places = self._places("superseded AS held INDEXED BY superseded_by_content", modality, contents)
        places |= self._places(HELD_BY_CONTENT, modality, contents)
        by_shard = sorted((*place, content) for content, place in places.items())
        return {content: self._vectors(modality, shard)[row].copy() for shard, row, content in by_shard}

    def held_contents(self, modality: Modality, contents: Sequence[str]) -> set[str]:
        """Return those of some contents, by SHA-256, that a row of the set has."""
        return {*self._places(HELD_BY_CONTENT, modality, contents)}

    def _places(self, table: str, modality: Modality, contents: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return the first shard and row of those contents that a table has. Each content is looked up apart.

        There may be a million rows of one.
        """
        query = f"""
            WITH asked (modality, content) AS (SELECT ?, column1 FROM (VALUES {{}}))
            SELECT content, (
                SELECT shard || ' ' || row FROM {table}
                WHERE held.modality = asked.modality AND held.content = asked.content
                ORDER BY shard, row LIMIT 1
            ) FROM asked
        """
        found = self._among(query, modality, list({bytes.fromhex(content) for content in contents}))
        places = ((content, place.split()) for content, place in found if place)
        return {content.hex(): (int(shard), int(row)) for content, (shard, row) in places}

    def _vectors(self, modality: Modality, shard: int) -> FloatArray:
        if self._cached is None or self._cached[0] != (modality, shard):
            self._cached = (modality, shard), read_shard(self._directory / self._shards[shard], modality).vectors
        return self._cached[1]

    def add_refused(self, shard: Path, modality: Modality, contents: Sequence[str], *, again: bool) -> None:
        """Add a shard of refused items; `again`: this pass has refused them."""
        number = len(self._shards)
        self._shards.append(f"{REFUSED}/{shard.name}")
        rows = ((modality, bytes.fromhex(content), number, row, again) for row, content in enumerate(contents))
        self._database.executemany("INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?, ?)", rows)

    def refuse(self, modality: Modality, content_sha256: str) -> bool:
        """Note that this pass refuses an item of this content; return whether there is a vector of a refused one."""
        statement = "UPDATE refused SET again = 1 WHERE modality = ? AND content = ?"
        return bool(self._database.execute(statement, (modality, bytes.fromhex(content_sha256))).rowcount)

    def find_refused(self, modality: Modality, content_sha256: str) -> FloatArray | None:
        """Return the vector (d,) of a refused item of this content, or None if none is kept."""
        query = "SELECT shard, row FROM refused WHERE modality = ? AND content = ?"
        place = self._database.execute(query, (modality, bytes.fromhex(content_sha256))).fetchone()
        if place is None:
            return None
        shard, row = place
        vector: FloatArray = self._vectors(modality, shard)[row].copy()
        return vector

    def not_refused(self, modality: Modality) -> dict[str, set[int]]:
        """Return, by shard, the rows of refused items of a modality that this pass has not refused."""
        query = "SELECT shard, row FROM refused WHERE modality = ? AND NOT again ORDER BY shard"
        rows = self._database.execute(query, (modality,))
        by_shard = groupby(rows, key=lambda row: row[0])
        return {self._shards[shard]: {row for _, row in of_shard} for shard, of_shard in by_shard}

    def held(self, modality: Modality) -> int:
        """Return how many rows of a modality the set held before the pass."""
        return self._rows_before.get(modality, 0)

    def superseded(self) -> dict[tuple[Modality, str], set[int]]:
        """Return, by modality and shard, the rows that newer rows of the same keys supersede."""
        query = "SELECT modality, shard, group_concat(row) FROM superseded GROUP BY modality, shard"
        found = self._database.execute(query)
        return {(m, self._shards[shard]): set(map(int, rows.split(","))) for m, shard, rows in found}

    def unseen(self) -> dict[Modality, Gone]:
        """Count the rows whose keys this pass has not seen, by modality; one without such rows has no entry."""
        query = """
            SELECT modality, count(*) FROM current LEFT JOIN seen USING (modality, key)
            WHERE seen.key IS NULL GROUP BY modality
        """
        return {m: Gone(rows, self._rows_before[m]) for m, rows in self._database.execute(query)}

    def unseen_rows(self) -> Iterator[tuple[Modality, str, dict[int, str]]]:
        """Yield the rows that this pass has not seen, shard by shard: modality, shard and key by row."""
        query = """
            SELECT modality, shard, row, key FROM current LEFT JOIN seen USING (modality, key)
            WHERE seen.key IS NULL ORDER BY modality, shard, row
        """
        rows = self._database.execute(query)
        for (modality, shard), of_shard in groupby(rows, key=lambda row: (row[0], row[1])):
            yield modality, self._shards[shard], {row: key for _, _, row, key in of_shard}

    def close(self) -> None:
        """Remove the index."""
        self._database.close()


def _description(group: str, payload: str) -> bytes:
    return hashlib.blake2b(f"{len(group)} {group}{payload}".encode(), digest_size=16).digest()
