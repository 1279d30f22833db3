"""Results of units in the order of the corpus, whatever order workers complete them in."""

from collections import Counter
from collections.abc import Generator, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from alignment.modality import Modality
from alignment.object_storage import is_remote
from connector.corpora.items import Entry, Item, Unit
from connector.corpora.picture_files import is_file
from connector.encoding.preparation import digest_of
from connector.encoding.staged_units import StagedUnits
from connector.encoding.unit_encoder import (
    DECODING_THREADS,
    REMOTE_READERS,
    Content,
    EncodedItem,
    Group,
    Row,
    encoded_item,
    is_met,
)
from connector.encoding.unit_rows import SCHEMA, from_batches
from connector.encoding.unit_worker import UnitWorkerFactory, files_missing
from connector.executors.contract import Executor, Failure, Outcome
from connector.rejects import Reason, Reject

READ_AT_ONCE = 32  # entries, whose images are held

UnitOutcome: TypeAlias = Outcome[Unit, pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class FailedUnit:
    """A unit that no worker could encode, and why."""

    unit: Unit
    failure: Failure

    def __str__(self) -> str:
        return f"unit {self.unit.name}: {self.failure}"


class UnitResults:
    """Has the units of a corpus encoded by an executor, and yields their rows unit by unit.

    A result that comes before its turn is staged. What was staged for an earlier pass, which was killed, is taken and
    not encoded again.

    Args:
        executor: where units are encoded.
        factory: of the workers.
        staged: the results that wait.
    """

    def __init__(self, executor: Executor, factory: UnitWorkerFactory, staged: StagedUnits):
        self._executor = executor
        self._factory = factory
        self._staged = staged
        staged.identity = _identity(factory)
        self._units: list[Unit] = []  # those met, by number
        self._asked: list[int] = []  # numbers of those that the executor was asked for
        self._ready: dict[int, Failure | None] = {}  # by number, those that completed: staged, or failed

    def in_order(self) -> Generator[Group | FailedUnit, None, None]:
        """Yield the groups of each unit, and an empty one at its end; or that it failed.

        Raises:
            MismatchError: a worker has missed an image that is here.
        """
        turn = 0
        outcomes = self._executor.map(self._factory, self._tasks())
        with closing(_closable(outcomes)) as outcomes:
            for outcome in outcomes:
                number, parts = self._asked[outcome.position], map(_checked, outcome.parts)
                turn = yield from self._take_ready(turn)  # found in the folder, before this one was asked for
                if outcome.failure is None and number == turn:
                    yield from from_batches(parts)
                    yield []
                    turn += 1
                else:
                    if outcome.failure is None:
                        self._staged.write(outcome.task, parts)
                    self._ready[number] = outcome.failure
                turn = yield from self._take_ready(turn)
        yield from self._take_ready(turn)

    def _tasks(self) -> Iterator[Unit]:
        """Yield the units that are to be encoded."""
        for number, unit in enumerate(self._factory.corpus.units()):
            self._units.append(unit)
            if self._staged.holds(unit, self._factory.known) and self._is_current(unit):
                self._ready[number] = None
            else:
                self._asked.append(number)
                yield unit

    def _is_current(self, unit: Unit) -> bool:
        """Whether a staged result is what a worker would make of the unit now; files may have changed meanwhile.

        One that is not is removed, and so is one in which a content was refused: it may have been mended. The unit is
        read and its contents are hashed, as every pass does with those that the set holds: a file that was replaced may
        have the size and the time of the one before, where a copy or an archive kept them.
        """
        staged = [row for group in from_batches(self._staged.read(unit)) for row in group]
        if not any(map(_may_be_mended, staged)) and Counter(map(_identity_of, staged)) == self._now(unit):
            return True
        self._staged.remove(unit)
        return False

    def _now(self, unit: Unit) -> Counter[Hashable]:
        """Return how often the corpus has each row of a unit now."""
        remote, cards = is_remote(self._factory.corpus.path), self._factory.cards
        met: set[tuple[Modality, str]] = set()
        rows: Counter[Hashable] = Counter()
        with ThreadPoolExecutor(REMOTE_READERS if remote else DECODING_THREADS) as threads:
            for entry, digest in _digests(self._factory.corpus.within(unit).with_captions(), threads):
                if isinstance(entry, Item):
                    is_encoded = entry.modality in cards and not is_met(entry, met) and digest is not None
                    rows[_identity_of(encoded_item(entry, Content(digest or "") if is_encoded else None))] += 1
                else:
                    rows[entry] += 1
        return rows

    def _take_ready(self, turn: int) -> Generator[Group | FailedUnit, None, int]:
        """Yield the units from number `turn` on that are ready; return the number of the first that is not."""
        while turn in self._ready:
            unit, failure = self._units[turn], self._ready.pop(turn)
            if failure is None:
                yield from from_batches(self._staged.read(unit))
                self._staged.remove(unit)
                yield []
            else:
                yield FailedUnit(unit, failure)
                yield []
            turn += 1
        return turn


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows of a unit, if no image that its worker has missed is here: the worker's folder lacks it."""
    if batch["reason"].null_count < len(batch):
        for reason, text in zip(batch["reason"].to_pylist(), batch["text"].to_pylist(), strict=True):
            if reason == Reason.IMAGE_MISSING and text and is_file(Path(text)):
                raise files_missing(Path(text))
    return batch


def _may_be_mended(row: Row) -> bool:
    """Whether the content of an item was refused, for what another content under the same name may not be."""
    content = row.content if isinstance(row, EncodedItem) else None
    return isinstance(content, Reject) and content.reason != Reason.KEY_DUPLICATE


def _identity_of(row: Row) -> Hashable:
    """Return what is to be equal in two rows, so that one is the other: all but the vector."""
    if not isinstance(row, EncodedItem):
        return row
    item, digest = row.item, row.content.sha256 if isinstance(row.content, Content) else None
    named = (item.modality, item.key, item.group, item.content, row.payload)
    return (*named, item.source, item.position, item.line, item.keyed_by_content, digest)


def _digests(entries: Iterator[Entry], threads: ThreadPoolExecutor) -> Iterator[tuple[Entry, str | None]]:
    while window := list(islice(entries, READ_AT_ONCE)):
        yield from zip(window, threads.map(digest_of, window), strict=True)


def _closable(outcomes: Iterable[UnitOutcome]) -> Generator[UnitOutcome, None, None]:
    """Let an iterator be closed that is a generator, or none."""
    yield from outcomes


def _identity(factory: UnitWorkerFactory) -> str:
    """Say what all results depend on: the corpus file, how it is read, and what encodes it."""
    corpus, cards = factory.corpus, sorted(factory.cards.items())
    return repr((SCHEMA.names, corpus, _state(corpus.path), cards, factory.batch_items, factory.max_pixels))


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of a file; None: there is none of that name, as of a pattern of archives."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return stat.st_size, stat.st_mtime_ns
