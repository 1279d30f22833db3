"""Encode a corpus into an embedding set: resumable, and nothing again that the set holds.

A worker encodes the units of the corpus (`connector.encoding.unit_encoder`). What it yields is taken here, in the order
of the corpus, against an index of the set: it decides which rows are new, which keep their vectors, and which are
rejected, and writes the shards.

A killed encode leaves whole shards. The next one reads the corpus from the start and skips items that are already in
the shards, so it makes the same batches and shards as an uninterrupted run.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from pathlib import PurePath
from typing import Self

from alignment.modality import MODALITIES, Modality
from alignment.plurals import counted
from alignment.sets.writer import SetWriter
from connector.corpora.items import NOUNS, Corpus, PassedOver, Remark, empty, reached, summed
from connector.encoding.encoders import Encoder
from connector.encoding.pipeline import Pipeline
from connector.encoding.preparation import duplicate
from connector.encoding.refused_vectors import RefusedVectors
from connector.encoding.row_sink import DurableShard, RowSink
from connector.encoding.set_index import Gone, SetIndex
from connector.encoding.staged_units import StagedUnits
from connector.encoding.truncation import count_truncated, say_truncated
from connector.encoding.unit_encoder import BATCH_ITEMS, Content, EncodedItem, Group, Row, UnitEncoder
from connector.encoding.unit_results import FailedUnit, UnitResults
from connector.encoding.unit_worker import UnitWorkerFactory, files_here
from connector.errors import CorpusError
from connector.executors.contract import Executor
from connector.progress import Advance
from connector.provenance.runs import Run
from connector.rejects import OF_FIELDS, Reject
from connector.settings import MAX_PIXELS

_log = logging.getLogger(__name__)

SHARD_ROWS = 1024
EXAMPLES = 3  # files to name in a message

AddTombstones = Callable[[Modality, str, list[str]], None]


def encode(
    corpus: Corpus,
    writer: SetWriter,
    encoders: Mapping[Modality, Encoder],
    run: Run,
    *,
    batch_items: int = BATCH_ITEMS,
    shard_rows: int = SHARD_ROWS,
    advance: Advance = lambda count: None,
    max_pixels: int = MAX_PIXELS,
    executor: Executor | None = None,
    device: str = "auto",
) -> None:
    """Encode `corpus` with `encoders` into the set that `writer` has open.

    Args:
        executor: where units are encoded, on `device`; None: in this process, by `encoders`.

    Raises:
        CorpusError: the corpus is empty; or units could not be encoded, and all else is done.
    """
    with (
        Encoding(
            *(corpus, writer, encoders, run, batch_items, shard_rows, advance),
            max_pixels=max_pixels,
            executor=executor,
            device=device,
        ) as encoding,
        Pipeline() as pipeline,
    ):
        for _ in encoding.shards(pipeline):
            pass
        encoding.finish()
    if failed := encoding.units_error():
        raise failed


class Encoding:
    """One pass over a corpus: take its `shards` as they become durable, then `finish` it. Use as a context manager.

    Counts in `run`: `encoded`, `reused`, `already_in_set`, `rejected`; `truncated` for captions among the encoded and
    reused ones of which the encoder reads the beginning alone; `left_out` for items of a modality without an encoder;
    `passed_over` for files that the reader has no use for; and `no_longer_in_corpus` for rows that stay in the set
    although the corpus no longer holds them.

    Attributes:
        failed_units: units that no worker could encode.
        unread: number of rows, files and units that could not be read and may hold items.
        unread_examples: a few of them.
    """

    def __init__(
        self,
        corpus: Corpus,
        writer: SetWriter,
        encoders: Mapping[Modality, Encoder],
        run: Run,
        batch_items: int = BATCH_ITEMS,
        shard_rows: int = SHARD_ROWS,
        advance: Advance = lambda count: None,
        *,
        max_pixels: int = MAX_PIXELS,
        executor: Executor | None = None,
        device: str = "auto",
    ):
        self.failed_units: list[FailedUnit] = []
        self.unread = 0
        self.unread_examples: list[str] = []
        self._passed_over: Counter[str] = Counter()
        self._left_out: Counter[Modality] = Counter()
        self._remarks: list[Remark] = []
        self._corpus = corpus
        self._writer = writer
        self._encoders = encoders
        self._run = run
        self._batch_items = batch_items
        self._shard_rows = shard_rows
        self._advance = advance
        self._max_pixels = max_pixels
        self._executor = executor
        self._device = device
        self._staged = StagedUnits(writer.path)
        self._written: list[DurableShard] = []
        self._texts_changed = False
        self._met: set[Modality | None] = set()

    def __enter__(self) -> Self:
        card = self._writer.card
        self._truncated_before = card.truncated if card.complete else None
        self._index = SetIndex(self._writer)
        if self._drop({}):  # superseded rows of a killed encode; afterwards each key is in one shard only
            self._index.close()
            self._index = SetIndex(self._writer)
        self._refused = RefusedVectors(self._writer, self._index, self._shard_rows)
        return self

    def __exit__(self, *_: object) -> None:
        self._index.close()

    def shards(self, pipeline: Pipeline) -> Generator[DurableShard, None, None]:
        """Encode the items that the set does not hold, reading ahead in a stage of `pipeline`.

        Raises:
            CorpusError: the corpus is empty.
        """
        self._sinks = {modality: self._sink(modality, encoder) for modality, encoder in self._encoders.items()}
        seen_any, position, rows = False, 0, 0
        for group in self._groups(pipeline):
            first_times = self._first_times(group)
            for row in group:
                seen_any = seen_any or not isinstance(row, PassedOver | Remark)
                self._take(row, first_times)
            for sink in self._sinks.values():
                sink.end_group()
            read = max((reached(row.item if isinstance(row, EncodedItem) else row) for row in group), default=0)
            self._advance(max(0, read - position))
            rows += max(0, read - position)
            position = max(position, read) if group else 0  # of the next unit
            yield from self._new_shards()
        if not seen_any and not self.failed_units:
            raise empty(self._corpus.path)
        for sink in self._sinks.values():
            sink.write()
        self._refused.write()
        if not self.failed_units:
            self._say_what_is_missing(rows)
        self._report_passed_over()
        for remark in summed(self._remarks):
            _log.warning("%s", remark)
        say_truncated(self._run.counts["truncated"], self._encoders)
        yield from self._new_shards()

    def _say_what_is_missing(self, rows: int) -> None:
        """Say of which modality the `rows` of the corpus had no item: what is refused may hide some."""
        counts = self._run.counts
        look = f"see `modalign rejects {self._run.id}`"
        if counts["rejected"] and not any(counts[name] for name in ("encoded", "reused", "already_in_set", "left_out")):
            all_rows = f"all {rows:,} rows were" if rows > 1 else "everything was"
            _log.warning("nothing of the corpus was encoded, because %s refused: %s", all_rows, look)
            return
        for modality in self._encoders.keys() - self._met:
            hidden = f"; rows were refused that may hold some: {look}" if self.unread else ""
            _log.warning("the corpus has no %ss for %s%s", NOUNS[modality], self._encoders[modality].spec, hidden)
        for modality, count in self._left_out.items():
            _log.info("left out %s, because no --%s-encoder was given", counted(count, NOUNS[modality]), modality)

    def _new_shards(self) -> Iterator[DurableShard]:
        shards = self._written.copy()
        self._written.clear()
        self._texts_changed |= any(shard.modality == "text" for shard in shards)
        return iter(shards)

    def _groups(self, pipeline: Pipeline) -> Iterator[Group]:
        """Encode the units of the corpus by the executor, or in this process, reading ahead."""
        if self._executor is None:
            encoder = UnitEncoder(self._encoders, self._index.known, self._batch_items, self._max_pixels)
            return encoder.encode((self._corpus.within(unit) for unit in self._corpus.units()), pipeline)
        cards = {modality: encoder.card for modality, encoder in self._encoders.items()}
        factory = UnitWorkerFactory(
            *(self._corpus, cards, self._index.known, self._batch_items, self._max_pixels, self._device),
            files_here(self._corpus),
        )
        return self._results(self._executor, factory)

    def _results(self, executor: Executor, factory: UnitWorkerFactory) -> Iterator[Group]:
        for result in UnitResults(executor, factory, self._staged).in_order():
            if isinstance(result, FailedUnit):
                self.failed_units.append(result)
                self._unread(str(result))
            else:
                yield result

    def _sink(self, modality: Modality, encoder: Encoder) -> RowSink:
        whole = self._truncated_before == 0
        return RowSink(modality, encoder, self._writer, self._index, self._run, self._shard_rows, self._written, whole)

    def gone(self) -> dict[Modality, Gone]:
        """Count the rows of the set whose items this pass has not seen, by modality."""
        return self._index.unseen()

    def finish(self, add_tombstones: AddTombstones | None = None) -> set[str]:
        """Drop superseded rows, and mark the set complete. Call it when nobody reads the shards any more.

        Args:
            add_tombstones: also drop rows whose items this pass has not seen, and call this with modality, shard and
                keys before. None: keep those rows.

        Returns:
            Names of the shards that changed.
        """
        pruned: dict[tuple[Modality, str], dict[int, str]] = {}
        if add_tombstones:
            for modality, shard, keys in self._index.unseen_rows():
                pruned[modality, shard] = keys
                add_tombstones(modality, shard, list(keys.values()))
                self._run.counts["pruned"] += len(keys)
        else:
            self._run.counts["no_longer_in_corpus"] = sum(gone.rows for gone in self.gone().values())
        changed = self._drop(pruned)
        if not self.failed_units:
            self._refused.finish(self._encoders)
        self._writer.finish(self._count_truncated())
        self._staged.clear()
        return changed

    def units_error(self) -> CorpusError | None:
        """Return an error that names the units that no worker could encode, if there are any."""
        if not (failed := self.failed_units):
            return None
        named = "; ".join(map(str, failed[:EXAMPLES]))
        more = f"; and {len(failed) - EXAMPLES} more" if len(failed) > EXAMPLES else ""
        return CorpusError(
            f"{counted(failed, 'unit')} of corpus {self._corpus.path} could not be encoded: {named}{more}. All else is "
            "done, and nothing is deleted; mend the cause and run the same command again",
            code="units-failed",
        )

    def _count_truncated(self) -> int | None:
        """Return how many captions of the set are truncated; None: it is not known."""
        sink = self._sinks.get("text")
        if sink and sink.rows_written and sink.truncated_rows is not None and not self._index.held("text"):
            return sink.truncated_rows
        taken = self._run.counts["truncated"]
        before = self._truncated_before
        return count_truncated(self._writer, self._encoders, before, changed=self._texts_changed, taken=taken)

    def _drop(self, pruned: Mapping[tuple[Modality, str], Collection[int]]) -> set[str]:
        """Rewrite shards without their superseded and pruned rows; return the names of these shards."""
        superseded = self._index.superseded()
        for modality, shard in sorted(superseded.keys() | pruned.keys()):
            rows = superseded.get((modality, shard), set()) | set(pruned.get((modality, shard), ()))
            self._writer.drop(self._writer.path / shard, modality, rows)
            self._texts_changed |= modality == "text"
        return {shard for _, shard in superseded.keys() | pruned.keys()}

    def _first_times(self, group: Group) -> dict[Modality, Iterator[bool]]:
        """Mark the keys of a group as seen; return of each item, in order by modality, whether its key is a new one."""
        items = [row.item for row in group if isinstance(row, EncodedItem)]
        keys = {modality: [item.key for item in items if item.modality == modality] for modality in MODALITIES}
        return {modality: iter(self._index.first_times(modality, own)) for modality, own in keys.items()}

    def _take(self, row: Row, first_times: Mapping[Modality, Iterator[bool]]) -> None:
        """Record a reject, a remark or a file that is passed over, or pass an item to the sink of its modality."""
        if isinstance(row, Remark):
            self._remarks.append(row)
        elif isinstance(row, PassedOver):
            self._pass_over(row)
        elif isinstance(row, Reject):
            self._met.add(row.modality)
            if row.reason not in OF_FIELDS:
                self._unread(f"{row.source}, row {row.position}" if row.position else row.source)
            self._run.reject(row)
        else:
            self._take_item(row, next(first_times[row.item.modality]))

    def _take_item(self, row: EncodedItem, first_time: bool) -> None:
        item = row.item
        self._met.add(item.modality)
        if row.content is None:  # the corpus holds it, although this pass leaves it out
            self._run.counts["left_out"] += 1
            self._left_out[item.modality] += 1
        elif not first_time:
            self._run.reject(duplicate(item))
            if isinstance(row.content, Content):
                self._refused.take(item, row.payload, row.content)
        elif isinstance(row.content, Reject):
            self._run.reject(row.content)
        else:
            self._sinks[item.modality].take(row, row.content)

    def _pass_over(self, entry: PassedOver) -> None:
        if entry.may_hide:
            self._unread(entry.name)
        if entry.counted:
            self._run.count("passed_over", 1)
            self._passed_over[PurePath(entry.name).suffix.lower() or "no suffix"] += 1

    def _unread(self, name: str) -> None:
        self.unread += 1
        if len(self.unread_examples) < EXAMPLES:
            self.unread_examples.append(name)

    def _report_passed_over(self) -> None:
        if self._passed_over:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in self._passed_over.most_common(10))
            more = " and others" if len(self._passed_over) > 10 else ""
            _log.info("passed over %s: %s%s", counted(self._passed_over.total(), "file"), kinds, more)
