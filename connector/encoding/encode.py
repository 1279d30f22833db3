"""Encode a corpus into an embedding set: resumable, and never the same content twice.

A killed encode leaves whole shards. The next one reads the corpus from the start and skips items that are already in
the shards, so it makes the same batches and shards as an uninterrupted run.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Self

import numpy as np

from alignment.modality import Modality
from alignment.plurals import counted, plural
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray, invalid_rows, rows_lost_in
from connector.corpora.items import Corpus, Entry, Item, PassedOver, Remark, reached, summed
from connector.encoding.encoders import Encoder
from connector.encoding.pipeline import Pipeline
from connector.encoding.preparation import Content, prepare, read_entry, read_image_of, reject_of
from connector.encoding.set_index import Gone, SetIndex
from connector.encoding.truncation import count_truncated, is_truncated, say_truncated
from connector.errors import CorpusError
from connector.progress import Advance
from connector.provenance.runs import Run
from connector.rejects import OF_FIELDS, Reason, Reject
from connector.settings import MAX_PIXELS

_log = logging.getLogger(__name__)

SHARD_ROWS = 1024
BATCH_ITEMS = 32
DECODING_THREADS = 4
WINDOW_BYTES = 64 << 20  # of images out of archives, which the window holds in memory
EXAMPLES = 3  # files to name in a message
WINDOWS_AHEAD = 2  # of `batch_items` entries: prepared images are 600 kB each

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
) -> None:
    """Encode `corpus` with `encoders` into the set that `writer` has open.

    Raises:
        CorpusError: the corpus is empty.
    """
    with (
        Encoding(corpus, writer, encoders, run, batch_items, shard_rows, advance, max_pixels=max_pixels) as encoding,
        Pipeline() as pipeline,
    ):
        for _ in encoding.shards(pipeline):
            pass
        encoding.finish()


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that is durable on disk.

    Attributes:
        additive: whether all its keys are new to the set. Otherwise older shards hold rows of some of these keys until
            `Encoding.finish` drops them.
    """

    modality: Modality
    path: Path
    additive: bool


class Encoding:
    """One pass over a corpus: take its `shards` as they become durable, then `finish` it. Use as a context manager.

    Counts in `run`: `encoded`, `reused`, `already_in_set`, `rejected`; `truncated` for captions among the encoded and
    reused ones of which the encoder reads the beginning alone; `left_out` for items of a modality without an encoder;
    `passed_over` for files that the reader has no use for; and `no_longer_in_corpus` for rows that stay in the set
    although the corpus no longer holds them.

    Attributes:
        unread: number of rows and files that could not be read and may hold items.
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
        may_be_empty: bool = False,
        max_pixels: int = MAX_PIXELS,
    ):
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
        self._may_be_empty = may_be_empty
        self._max_pixels = max_pixels
        self._written: list[Shard] = []
        self._texts_changed = False
        self._met: set[Modality | None] = set()

    def __enter__(self) -> Self:
        card = self._writer.card
        self._truncated = card.truncated if card.complete else None
        self._index = SetIndex(self._writer)
        if self._drop({}):  # superseded rows of a killed encode; afterwards each key is in one shard only
            self._index.close()
            self._index = SetIndex(self._writer)
        return self

    def __exit__(self, *_: object) -> None:
        self._index.close()

    def shards(self, pipeline: Pipeline) -> Generator[Shard, None, None]:
        """Encode the items that the set does not hold, reading ahead in a stage of `pipeline`.

        Raises:
            CorpusError: the corpus is empty, and `may_be_empty` is not set.
        """
        sinks = {
            modality: _Sink(
                modality,
                encoder,
                self._writer,
                self._index,
                self._run,
                self._batch_items,
                self._shard_rows,
                self._max_pixels,
                self._written,
                self._truncated == 0,
            )
            for modality, encoder in self._encoders.items()
        }
        seen_any, position = False, 0
        for window in pipeline.ahead(self._windows(), WINDOWS_AHEAD):
            for entry, content in window:
                seen_any = seen_any or not isinstance(entry, PassedOver | Remark)
                self._take(entry, content, sinks)
            read = max(position, *(reached(entry) for entry, _ in window))
            self._advance(read - position)
            position = read
            yield from self._new_shards()
        if not seen_any and not self._may_be_empty:
            raise CorpusError(f"corpus {self._corpus.path} is empty: expected at least one image or caption")
        if not self._may_be_empty:
            self._say_what_is_missing()
        for sink in sinks.values():
            sink.close()
        self._report_passed_over()
        for remark in summed(self._remarks):
            _log.warning("%s", remark)
        say_truncated(self._run.counts["truncated"], self._encoders)
        yield from self._new_shards()

    def _say_what_is_missing(self) -> None:
        for modality in self._encoders.keys() - self._met:
            column = {"image": "--image", "text": "--caption"}[modality]
            _log.warning(
                "the corpus has no %s for %s; if a column of a manifest holds them, name it with %s",
                *(plural(modality), self._encoders[modality].spec, column),
            )
        for modality, count in self._left_out.items():
            noun = {"image": "image", "text": "caption"}[modality]
            _log.info("left out %s, because no --%s-encoder was given", counted(count, noun), modality)

    def _new_shards(self) -> Iterator[Shard]:
        shards = self._written.copy()
        self._written.clear()
        self._texts_changed |= any(shard.modality == "text" for shard in shards)
        return iter(shards)

    def _windows(self) -> Generator["_Window", None, None]:
        """Read, hash and prepare the corpus window by window, in order, with several threads."""
        with ThreadPoolExecutor(DECODING_THREADS) as threads:
            stream = self._corpus.with_captions()
            while window := _take_window(stream, self._batch_items):
                contents = threads.map(self._read, window)
                yield list(zip(window, contents, strict=True))

    def _read(self, entry: Item | Reject) -> "Content | Reject | None":
        return read_entry(entry, self._encoders, self._index, self._max_pixels)

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
        taken = self._run.counts["truncated"]
        truncated = count_truncated(
            self._writer, self._encoders, self._truncated, changed=self._texts_changed, taken=taken
        )
        self._writer.finish(truncated)
        return changed

    def _drop(self, pruned: Mapping[tuple[Modality, str], Collection[int]]) -> set[str]:
        """Rewrite shards without their superseded and pruned rows; return the names of these shards."""
        superseded = self._index.superseded()
        for modality, shard in sorted(superseded.keys() | pruned.keys()):
            rows = superseded.get((modality, shard), set()) | set(pruned.get((modality, shard), ()))
            self._writer.drop(self._writer.path / shard, modality, rows)
            self._texts_changed |= modality == "text"
        return {shard for _, shard in superseded.keys() | pruned.keys()}

    def _take(self, entry: Entry, content: "Content | Reject | None", sinks: Mapping[Modality, "_Sink"]) -> None:
        """Record a reject, a remark or a file that is passed over, or pass an item to the sink of its modality."""
        if not isinstance(entry, PassedOver | Remark):
            self._met.add(entry.modality)
        if isinstance(entry, Remark):
            self._remarks.append(entry)
        elif isinstance(entry, PassedOver):
            self._pass_over(entry)
        elif isinstance(entry, Reject):
            if entry.reason not in OF_FIELDS:
                self._unread(f"{entry.source}, row {entry.position}" if entry.position else entry.source)
            self._run.reject(entry)
        elif entry.modality not in sinks:
            self._index.first_time(entry.modality, entry.key)  # the corpus holds it, although this pass leaves it out
            self._run.counts["left_out"] += 1
            self._left_out[entry.modality] += 1
        elif not self._index.first_time(entry.modality, entry.key):
            self._run.reject(reject_of(entry, "read", Reason.KEY_DUPLICATE, _met_before(entry)))
        elif isinstance(content, Reject):
            self._run.reject(content)
        elif content is not None:
            sinks[entry.modality].take(entry, content)

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


def _met_before(item: Item) -> str:
    """Say that the corpus has the key of an item before, and what to do."""
    if item.keyed_by_content:
        return (
            "the key is the SHA-256 of the picture, and a row further above has the same: sort the rows by picture, "
            "because those of one key must follow each other, or name a column of other keys with --key"
        )
    return f"the corpus has {item.modality} key {item.key!r} before; make keys unique"


def _take_window(stream: Iterator[Entry], most_items: int) -> list[Entry]:
    """Take up to `most_items` entries, fewer if they hold more than `WINDOW_BYTES` of images."""
    window: list[Entry] = []
    size = 0
    while len(window) < most_items and size < WINDOW_BYTES and (entry := next(stream, None)) is not None:
        window.append(entry)
        size += len(entry.content) if isinstance(entry, Item) and isinstance(entry.content, bytes) else 0
    return window


_Window = list[tuple[Entry, Content | Reject | None]]


@dataclass(slots=True)
class _Sink:
    """Collects items of one modality into batches for the encoder and encoded rows into shards."""

    modality: Modality
    encoder: Encoder
    writer: SetWriter
    index: SetIndex
    run: Run
    batch_items: int
    shard_rows: int
    max_pixels: int
    written: list[Shard]
    none_truncated: bool  # of the vectors that `index` finds
    _batch: list[tuple[Item, Content]] = field(default_factory=list)
    _known: dict[int, FloatArray] = field(default_factory=dict)
    _rows: list[Rows] = field(default_factory=list)

    def take(self, item: Item, content: Content) -> None:
        """Skip an unchanged item, reuse the vector of equal content, or add the item to the next batch."""
        payload = json.dumps(item.payload, ensure_ascii=False, sort_keys=True)
        stored = self.index.find_key(self.modality, item.key)
        if stored and stored.matches(content.sha256, item.group, payload):
            self.run.count("already_in_set", 1)
            return
        vector = self.index.find_vector(self.modality, content.sha256)
        surely_whole = vector is not None and self.none_truncated
        if isinstance(item.content, str) and not surely_whole and is_truncated(self.encoder, item.content):
            self.run.count("truncated", 1)
        if vector is not None:
            self._known[len(self._batch)] = vector
        elif content.prepared is None:
            # A text, or an image whose stored row was superseded after the image was read.
            if isinstance(item.content, Path | bytes):
                prepared = read_image_of(item, item.content, self.encoder, self.max_pixels)
            else:
                prepared = prepare(item, content.sha256, str(item.content), self.encoder, self.max_pixels)
            if isinstance(prepared, Reject):
                self.run.reject(prepared)
                return
            content = prepared
        self._batch.append((replace(item, content=""), content))  # the bytes of an image are needed no more
        if len(self._batch) - len(self._known) >= self.batch_items or len(self._batch) >= self.shard_rows:
            self._encode()

    def close(self) -> None:
        """Encode and write the remaining items."""
        self._encode()
        self._write()

    def _encode(self) -> None:
        if not self._batch:
            return
        vectors = np.zeros((len(self._batch), self.encoder.dim), np.float32)
        fresh = [row for row in range(len(self._batch)) if row not in self._known]
        if fresh:
            vectors[fresh] = self.encoder.embed(self.modality, [self._batch[row][1].prepared for row in fresh])
        for row, vector in self._known.items():
            vectors[row] = vector
        dtype = self.writer.card.dtype
        invalid = {**rows_lost_in(vectors, dtype), **invalid_rows(vectors)}
        for row, reason in invalid.items():
            item = self._batch[row][0]
            detail = f"expected a finite vector with a norm above 0 from {self.encoder.spec}, which {dtype} can hold"
            self.run.reject(reject_of(item, "encode", Reason(reason), detail))
        valid = [row for row in range(len(self._batch)) if row not in invalid]
        self.run.counts["reused"] += len(self._known)
        self.run.counts["encoded"] += len(fresh) - len(invalid)
        self._rows.append(_rows(self.modality, [self._batch[row] for row in valid], vectors[valid]))
        self._batch, self._known = [], {}
        if sum(map(len, self._rows)) >= self.shard_rows:
            self._write()

    def _write(self) -> None:
        rows = [part for part in self._rows if len(part)]
        if rows:
            joined = Rows.concatenate(rows)
            shard = self.writer.append(joined)
            self.written.append(Shard(self.modality, shard, self.index.add(shard, joined)))
            self.none_truncated = False
        self._rows = []


def _rows(modality: Modality, batch: Sequence[tuple[Item, Content]], vectors: FloatArray) -> Rows:
    return Rows(
        modality,
        [item.key for item, _ in batch],
        [item.group for item, _ in batch],
        [content.sha256 for _, content in batch],
        [json.dumps(item.payload, ensure_ascii=False, sort_keys=True) for item, _ in batch],
        vectors,
    )
