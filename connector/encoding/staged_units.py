"""Results of units that wait to be taken: durable files in a folder of the set's directory.

    SET/.units/DIGEST.arrow     the batches of one unit, complete or absent

Units are taken in their order and complete in any. A process that is killed loses nothing that waits: the next one
finds the result of a unit under the digest of everything that it depends on. Readers of the set look for shards and its
card alone, and never at this folder.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from alignment.durable import write_durably
from alignment.modality import MODALITIES
from alignment.object_storage import as_remote, is_remote
from connector.corpora.items import Unit
from connector.encoding.known_contents import KnownContents
from connector.encoding.unit_rows import SCHEMA

FOLDER = ".units"


@dataclass(slots=True)
class StagedUnits:
    """The results that wait beside a set.

    Attributes:
        directory: of the set.
        identity: what every result depends on beside its unit; set it first.
    """

    directory: Path
    identity: str = ""

    def write(self, unit: Unit, batches: Iterable[pa.RecordBatch]) -> None:
        """Keep the result of a unit: it is durable when this returns."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)
        path = self._path(unit)
        path.parent.mkdir(exist_ok=True)
        write_durably(path, sink.getvalue())

    def holds(self, unit: Unit, known: KnownContents) -> bool:
        """Whether the result of a unit is here and can be taken: the set holds each vector that it relies on.

        One that cannot be taken is removed.
        """
        try:
            held = all(_rests_on(batch, known) for batch in self.read(unit))
        except FileNotFoundError:
            return False
        except (pa.ArrowException, OSError):  # a disk lost it
            held = False
        if not held:
            self.remove(unit)
        return held

    def read(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a unit."""
        path = self._path(unit)
        stored = pa.BufferReader(path.read_bytes()) if is_remote(path) else pa.memory_map(str(path))
        with stored as source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)

    def remove(self, unit: Unit) -> None:
        """Remove the result of a unit, which was taken."""
        self._path(unit).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all results."""
        folder = self.directory / FOLDER
        if remote := as_remote(folder):
            remote.clear()
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, unit: Unit) -> Path:
        digest = hashlib.sha256(f"{self.identity}\n{unit!r}".encode()).hexdigest()
        return self.directory / FOLDER / f"{digest}.arrow"


def _rests_on(batch: pa.RecordBatch, known: KnownContents) -> bool:
    """Whether the contents of a batch that have no vector in it are all known."""
    columns = (batch["modality"], batch["sha256"], batch["vector"].is_null())
    rows = [*zip(*(column.to_pylist() for column in columns), strict=True)]
    for modality in MODALITIES:
        contents = {content.hex() for of, content, without in rows if of == modality and content and without}
        if known.among(modality, sorted(contents)) != contents:
            return False
    return True
