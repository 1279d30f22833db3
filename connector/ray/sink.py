"""Write a Ray dataset into a release.

Ray repeats tasks that died, so a task may write twice. Each attempt stages its rows in new files and returns their
names; the files of attempts whose names never arrived are not read. So every row counts once:

    tasks      check rows and stage them beside the embedding set, wherever they run
    driver     takes the staged rows into the set, as an import does: duplicate keys, rows that are there, rejects
    driver     pushes the set: ids, chain of checks, projection, ledger, verification
"""

import shutil
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

import pyarrow as pa
from filelock import FileLock, Timeout
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink, WriteResult
from typing_extensions import override

from alignment.errors import SetBusyError
from alignment.modality import Modality
from alignment.object_storage import as_remote, is_remote
from alignment.sets.cards import Dtype, EncoderCard
from alignment.sets.writer import check_same_encoder, recorded_encoders
from connector.errors import SettingsError
from connector.home import Home
from connector.provenance.runs import RunResult
from connector.ray.rows import StagedRows, check_columns, stage
from connector.releases.chain import check_encoder
from connector.releases.release import Release
from connector.requests import PushRequest
from connector.settings import Settings, checked_name


class ReleaseSink(Datasink[list[str]]):
    """Writes rows with vectors into an embedding set of a home, and pushes the set. For `Dataset.write_datasink`.

    The rows have the columns `key`, `modality` and `vector` (raw, as the encoder gives it: lists or tensors of floats),
    and may have `group` (without it: the key), `payload` (a struct, or a JSON object as text) and `content_sha256`
    (SHA-256 of what was encoded; without it: of the vector). Rows of equal hash share the vector of one of them.

    A row that cannot be used is a reject of the run, as is one whose key another row has. Rows that the set holds
    already, from an earlier write or from `modalign encode`, stay; a row of their key replaces them.

    Attributes:
        result: run, counts and releases of the last write that ended well; None before.
    """

    def __init__(
        self,
        request: PushRequest,
        *,
        encoders: Mapping[Modality, EncoderCard],
        settings: Settings | None = None,
        dtype: Dtype = "float32",
        shared_home: bool = False,
    ):
        """Check what is known before any row is computed.

        Args:
            request: the set to write and the push of it.
            encoders: which encoder computed the vectors, by modality: those of the alignment.
            settings: of the home; None: from the variables `MODALIGN_*`.
            dtype: type of the vectors that a new set stores.
            shared_home: every node sees the home at the same path, or may write at its URL, so tasks may stage rows on
                any node. Otherwise they do on the node of this process alone.

        Raises:
            SettingsError: a name is invalid, or no encoder is given.
            AlignmentError: there is no such alignment, or it is damaged.
            MismatchError: the alignment was fitted for another encoder.
            EmbeddingSetError: another encoder made the vectors that the set holds.
        """
        super().__init__()
        self.result: RunResult[list[Release]] | None = None
        self._request, self._encoders, self._dtype = request, dict(encoders), dtype
        self._settings: Settings | None = settings or Settings.load()
        self._shared_home = shared_home
        checked_name(request.into, "collection")
        path = self._settings.set_path(request.set)
        if not encoders:
            raise SettingsError("expected the card of the encoder that computed the vectors, got none")
        alignment = Home(self._settings).alignment(request.alignment)
        recorded = recorded_encoders(path)
        for modality, card in self._encoders.items():
            check_encoder(alignment, modality, card, "the dataset")
            if modality in recorded:
                check_same_encoder(path, modality, recorded[modality], card)
        self._dims = {modality: card.dim for modality, card in self._encoders.items()}
        self._staging = path.with_name(f".{path.name}.rows") / uuid4().hex
        self._lock: FileLock | None = None
        if not is_remote(path):  # where there are no locks; what others stage is then left alone
            # Ray starts a write in another thread than it ends it in.
            self._lock = FileLock(path.with_name(f".{path.name}.rows.lock"), thread_local=False)

    def __getstate__(self) -> dict[str, Any]:
        """Tasks get what they need: no keys of databases, and no lock."""
        return {**self.__dict__, "result": None, "_settings": None, "_lock": None}

    @property
    @override
    def supports_distributed_writes(self) -> bool:
        return self._shared_home

    @override
    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Check the columns, and that both databases can be reached; make room for staged rows.

        Raises:
            CorpusError: a column is missing, has another type or another name.
            SetBusyError: another process writes a dataset into the set.
        """
        if isinstance(schema, pa.Schema):
            check_columns(schema)
        with self._home() as home:
            _ = home.provenance, home.store
        if self._lock is None:
            return
        self._staging.parent.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SetBusyError(
                f"embedding set {self._request.set}: another process, or another sink of this one, writes a dataset "
                "into it; wait for it or stop it"
            ) from None
        shutil.rmtree(self._staging.parent, ignore_errors=True)  # of a process that was killed
        self._staging.mkdir(parents=True)

    @override
    def write(self, blocks: Iterable[Block], ctx: object) -> list[str]:
        """Stage the rows of blocks; return the names of the files.

        Raises:
            SettingsError: this node does not see the directory for staged rows.
        """
        if not is_remote(self._staging) and not self._staging.is_dir():
            raise SettingsError(
                f"{self._staging} is not there on this node: expected a home that every node sees at the same path; "
                "without one, leave shared_home out, and rows are staged on the node of the driver"
            )
        names = []
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            if len(table):
                check_columns(table.schema)
                names.append(stage(self._staging, table, self._dims))
        return names

    @override
    def on_write_complete(self, write_result: WriteResult[list[str]]) -> None:
        """Take the staged rows into the set, and push it.

        Raises: as `Home.push_rows`.
        """
        names = sorted(name for names in write_result.write_returns for name in names)
        rows = StagedRows(self._staging, tuple(names), f"dataset of {self._request.set}")
        present = rows.modalities()
        encoders = {modality: card for modality, card in self._encoders.items() if modality in present}
        with self._home() as home:
            self.result = home.push_rows(self._request, rows, encoders or self._encoders, dtype=self._dtype)
        self._end()

    @override
    def on_write_failed(self, error: Exception) -> None:
        """Remove what tasks have staged: nothing of it is in the set."""
        self._end()

    def _home(self) -> Home:
        assert self._settings is not None
        return Home(self._settings)

    def _end(self) -> None:
        if remote := as_remote(self._staging):
            remote.clear()
        elif self._lock and self._lock.is_locked:
            shutil.rmtree(self._staging.parent, ignore_errors=True)
            self._lock.release()
