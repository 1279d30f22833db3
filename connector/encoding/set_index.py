"""An index of the rows of an embedding set, so that no content is encoded twice."""

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from alignment.modality import MODALITIES, Modality
from alignment.sets.rows import IDENTITY, Rows
from alignment.sets.shards import read_columns, read_shard, shard_paths
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray
from connector.encoding.known_contents import DIGEST, Digests, KnownContents, digests

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

    content_sha256: str
    description: bytes

    def matches(self, content_sha256: str, group: str, payload: str) -> bool:
        """Whether an item equals this row."""
        return (content_sha256, _description(group, payload)) == (self.content_sha256, self.description)


class SetIndex:
    """Rows of the set by key and by content hash, and the keys that this pass has seen.

    The index is a temporary SQLite file that goes with the process: memory is bounded at any corpus size, and a kill
    leaves nothing to repair.

    Attributes:
        known: the contents that there were vectors of before the pass, in the set or of refused items. `find_vector` or
            `find_refused` finds them until the pass ends.
    """

    def __init__(self, writer: SetWriter):
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            CREATE TABLE current (
                modality TEXT, key TEXT, content TEXT, description BLOB, shard TEXT, row INTEGER,
                PRIMARY KEY (modality, key)
            ) WITHOUT ROWID;
            CREATE INDEX by_content ON current (modality, content, shard, row);
            CREATE TABLE superseded (modality TEXT, content TEXT, shard TEXT, row INTEGER);
            CREATE INDEX superseded_by_content ON superseded (modality, content);
            CREATE TABLE seen (modality TEXT, key TEXT, PRIMARY KEY (modality, key)) WITHOUT ROWID;
            CREATE TABLE refused (
                modality TEXT, content TEXT, shard TEXT, row INTEGER, again INTEGER, PRIMARY KEY (modality, content)
            ) WITHOUT ROWID;
            """
        )
        self._directory = writer.path
        self._cached: tuple[tuple[Modality, str], FloatArray] | None = None
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
        self._database.execute("BEGIN")
        superseding = self._database.executemany(
            "INSERT INTO superseded SELECT modality, content, shard, row FROM current WHERE modality = ? AND key = ?",
            ((modality, key) for key, *_ in identity),
        )
        self._database.executemany(
            "INSERT OR REPLACE INTO current VALUES (?, ?, ?, ?, ?, ?)",
            (
                (modality, key, content, _description(group, payload), shard, row)
                for row, (key, group, content, payload) in enumerate(identity)
            ),
        )
        self._database.execute("COMMIT")
        return superseding.rowcount == 0

    def first_time(self, modality: Modality, key: str) -> bool:
        """Mark `key` as seen by this pass; return False if it was seen before."""
        return bool(self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (modality, key)).rowcount)

    def find_key(self, modality: Modality, key: str) -> StoredRow | None:
        """Return the row with this key."""
        query = "SELECT content, description FROM current WHERE modality = ? AND key = ?"
        columns = self._database.execute(query, (modality, key)).fetchone()
        return StoredRow(*columns) if columns else None

    def find_vector(self, modality: Modality, content_sha256: str) -> FloatArray | None:
        """Return the vector (d,) of this content, or None if the set holds none.

        Rows that are superseded have theirs until `Encoding.finish` drops them.
        """
        place = self._place(modality, content_sha256)
        if place is None:
            query = "SELECT shard, row FROM superseded WHERE modality = ? AND content = ? LIMIT 1"
            place = self._database.execute(query, (modality, content_sha256)).fetchone()
        return self._vector(modality, place) if place else None

    def holds(self, modality: Modality, content_sha256: str) -> bool:
        """Whether a row of the set has this content."""
        return self._place(modality, content_sha256) is not None

    def _place(self, modality: Modality, content_sha256: str) -> tuple[str, int] | None:
        # Without INDEXED BY, SQLite uses the primary key and reads every row of the modality.
        query = """
            SELECT shard, row FROM current INDEXED BY by_content WHERE modality = ? AND content = ?
            ORDER BY shard, row LIMIT 1
        """
        place: tuple[str, int] | None = self._database.execute(query, (modality, content_sha256)).fetchone()
        return place

    def _vector(self, modality: Modality, place: tuple[str, int]) -> FloatArray:
        shard, row = place
        if self._cached is None or self._cached[0] != (modality, shard):
            self._cached = (modality, shard), read_shard(self._directory / shard, modality).vectors
        vector: FloatArray = self._cached[1][row].copy()
        return vector

    def add_refused(self, shard: Path, modality: Modality, contents: Sequence[str], *, again: bool) -> None:
        """Add a shard of refused items; `again`: this pass has refused them."""
        name = f"{REFUSED}/{shard.name}"
        rows = ((modality, content, name, row, again) for row, content in enumerate(contents))
        self._database.executemany("INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?, ?)", rows)

    def refuse(self, modality: Modality, content_sha256: str) -> bool:
        """Note that this pass refuses an item of this content; return whether there is a vector of a refused one."""
        statement = "UPDATE refused SET again = 1 WHERE modality = ? AND content = ?"
        return bool(self._database.execute(statement, (modality, content_sha256)).rowcount)

    def find_refused(self, modality: Modality, content_sha256: str) -> FloatArray | None:
        """Return the vector (d,) of a refused item of this content, or None if none is kept."""
        query = "SELECT shard, row FROM refused WHERE modality = ? AND content = ?"
        place = self._database.execute(query, (modality, content_sha256)).fetchone()
        return self._vector(modality, place) if place else None

    def not_refused(self, modality: Modality) -> dict[str, set[int]]:
        """Return, by shard, the rows of refused items of a modality that this pass has not refused."""
        query = "SELECT shard, row FROM refused WHERE modality = ? AND NOT again ORDER BY shard"
        rows = self._database.execute(query, (modality,))
        return {shard: {row for _, row in of_shard} for shard, of_shard in groupby(rows, key=lambda row: row[0])}

    def held(self, modality: Modality) -> int:
        """Return how many rows of a modality the set held before the pass."""
        return self._rows_before.get(modality, 0)

    def superseded(self) -> dict[tuple[Modality, str], set[int]]:
        """Return, by modality and shard, the rows that newer rows of the same keys supersede."""
        query = "SELECT modality, shard, group_concat(row) FROM superseded GROUP BY modality, shard"
        return {(m, shard): set(map(int, rows.split(","))) for m, shard, rows in self._database.execute(query)}

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
            yield modality, shard, {row: key for _, _, row, key in of_shard}

    def close(self) -> None:
        """Remove the index."""
        self._database.close()


def _description(group: str, payload: str) -> bytes:
    return hashlib.sha256(json.dumps([group, payload]).encode()).digest()
