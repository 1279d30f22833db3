"""The worker's half of an encode: read, hash, decode and embed the entries of units.

It knows neither SQL nor the set, but the hashes of the contents that the set holds. What it yields of a unit depends on
the unit, the encoders and these hashes alone: not on other units, nor on where and when it works. Batches of an encoder
end where a unit ends, because a model may compute the last digits of a vector otherwise in another batch.
"""

import json
from collections import OrderedDict
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignment.modality import Modality
from alignment.object_storage import is_remote
from alignment.vectors import FloatArray
from connector.corpora.items import Corpus, Entry, Item, PassedOver, Remark, Vector
from connector.encoding.encoders import Encoder
from connector.encoding.known_contents import KnownContents
from connector.encoding.pipeline import Pipeline
from connector.encoding.preparation import Prepared, duplicate, prepare, read_entry
from connector.encoding.truncation import is_truncated
from connector.rejects import Reason, Reject

BATCH_ITEMS = 32
DECODING_THREADS = 4
REMOTE_READERS = 32  # threads where each image waits for the network
WINDOW_BYTES = 64 << 20  # of images out of archives, which the window holds in memory
WINDOWS_AHEAD = 2  # of `batch_items` entries: prepared images are 600 kB each
HELD_ITEMS = 1024  # that wait for a batch to fill
MET_KEYS = 1 << 20  # of a unit that are held, so that what is a duplicate among them is not encoded
RECENT_CONTENTS = 4096  # of a unit, whose vectors are held to be given to equal ones


@dataclass(frozen=True, slots=True)
class Content:
    """The content of an item, encoded.

    Attributes:
        sha256: of the content.
        vector: (d,) float32, unchecked; None: the set holds one.
        copied: the vector was computed for an equal content before.
        truncated: whether the encoder reads only the beginning of the caption. None: it does not say, or was not asked,
            because the set holds the vector; or it is an image.
    """

    sha256: str
    vector: FloatArray | None = None
    copied: bool = False
    truncated: bool | None = None


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item and what became of its content.

    Attributes:
        item: without the bytes of an image; of one whose file is missing, with its path.
        payload: of the item, as sorted JSON.
        content: why it was refused, if it was; None: no encoder was given for its modality.
    """

    item: Item
    payload: str
    content: Content | Reject | None


_to_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode

Row = EncodedItem | Reject | PassedOver | Remark
Group = list[Row]
Window = list[tuple[Entry, Prepared | Reject | None]]


class UnitEncoder:
    """Encodes units with encoders that load at their first use.

    Args:
        encoders: by modality. Items of another one are left out.
        known: contents that the set holds vectors of.
        batch_items: that the encoder takes at a time.
        max_pixels: of an image to decode.
    """

    def __init__(self, encoders: Mapping[Modality, Encoder], known: KnownContents, batch_items: int, max_pixels: int):
        self._encoders = encoders
        self._known = known
        self._batch_items = batch_items
        self._max_pixels = max_pixels

    def encode(self, units: Iterable[Corpus], pipeline: Pipeline) -> Iterator[Group]:
        """Encode units, and read ahead in a stage of `pipeline`. An empty group ends each unit."""
        return self.groups(pipeline.ahead(self.windows(units), WINDOWS_AHEAD))

    def windows(self, units: Iterable[Corpus]) -> Generator[Window, None, None]:
        """Read, hash and prepare units window by window, in order, with several threads; an empty window ends each."""
        with ExitStack() as pools:
            threads: ThreadPoolExecutor | None = None
            for unit in units:
                count = REMOTE_READERS if is_remote(unit.path) else DECODING_THREADS
                threads = threads or pools.enter_context(ThreadPoolExecutor(count))
                stream = unit.with_captions()
                met: set[tuple[Modality, str]] = set()
                while window := _take_window(stream, self._batch_items):
                    yield list(zip(window, self._contents(window, met, threads), strict=True))
                yield []

    def _contents(
        self, window: Sequence[Entry], met: set[tuple[Modality, str]], threads: ThreadPoolExecutor
    ) -> Iterator[Prepared | Reject | None]:
        """Read, hash and prepare the entries of a window: files in threads, and here what takes less than a thread."""
        again = [is_met(entry, met) for entry in window]
        files = {
            place: threads.submit(self._read, entry, again[place])
            for place, entry in enumerate(window)
            if isinstance(entry, Item) and not isinstance(entry.content, str | Vector)
        }
        for place, entry in enumerate(window):
            yield files[place].result() if place in files else self._read(entry, again[place])

    def _read(self, entry: Entry, again: bool) -> Prepared | Reject | None:
        if again and isinstance(entry, Item) and entry.modality in self._encoders:
            return duplicate(entry)
        return read_entry(entry, self._encoders, self._known, self._max_pixels)

    def groups(self, windows: Iterable[Window]) -> Iterator[Group]:
        """Encode what `windows` yields. Items of one modality stay in their order.

        A reader may cut a shard between two groups, and nowhere else: a pass that goes on from there makes the same
        batches.
        """
        batches = {m: self._batch(m, encoder) for m, encoder in self._encoders.items()}
        for window in windows:
            if not window:
                yield from (group for batch in batches.values() if (group := batch.encode()))
                yield []
                batches = {m: self._batch(m, encoder) for m, encoder in self._encoders.items()}
                continue
            known = self._known_in(window)
            others: Group = []
            for entry, content in window:
                if not isinstance(entry, Item):
                    others.append(entry)
                elif content is None:
                    others.append(encoded_item(entry, None))
                elif group := batches[entry.modality].take(entry, content, known[entry.modality]):
                    yield group
            if others:
                yield others
            yield from (group for batch in batches.values() if (group := batch.take_settled()))

    def _known_in(self, window: Window) -> dict[Modality, set[str]]:
        """Return the contents of a window that the set holds vectors of, by modality: looked up all at once."""
        contents: dict[Modality, list[str]] = {modality: [] for modality in self._encoders}
        for entry, content in window:
            if isinstance(entry, Item) and isinstance(content, Prepared):
                contents[entry.modality].append(content.sha256)
        return {modality: self._known.among(modality, of_modality) for modality, of_modality in contents.items()}

    def _batch(self, modality: Modality, encoder: Encoder) -> "_Batch":
        return _Batch(modality, encoder, self._batch_items, self._max_pixels)


@dataclass(slots=True)
class _Batch:
    """The items of one modality that wait for their vectors, with those behind them."""

    modality: Modality
    encoder: Encoder
    batch_items: int
    max_pixels: int
    _items: list[EncodedItem] = field(default_factory=list)
    _waiting: list[tuple[int, Content]] = field(default_factory=list)  # those to embed, with their places in `_items`
    _inputs: list[Any] = field(default_factory=list)  # of these
    _recent: OrderedDict[str, FloatArray] = field(default_factory=OrderedDict)

    def take(self, item: Item, prepared: Prepared | Reject, known: Collection[str]) -> Group:
        """Add an item; return the items that are done now, if any are. The set holds vectors of `known` contents."""
        self._items.append(encoded_item(item, self._content(item, prepared, known)))
        return self.encode() if len(self._inputs) >= self.batch_items or len(self._items) >= HELD_ITEMS else []

    def _content(self, item: Item, prepared: Prepared | Reject, known: Collection[str]) -> Content | Reject:
        if isinstance(prepared, Reject):
            return prepared
        if prepared.sha256 in known:
            return Content(prepared.sha256)
        vector = self._find_recent(prepared.sha256)
        if vector is None and prepared.model_input is None:
            of_text = prepare(item, prepared.sha256, str(item.content), self.encoder, self.max_pixels)
            if isinstance(of_text, Reject):
                return of_text
            prepared = of_text
        truncated = is_truncated(self.encoder, item.content) if isinstance(item.content, str) else None
        content = Content(prepared.sha256, vector, vector is not None, truncated)
        if vector is None:
            self._waiting.append((len(self._items), content))
            self._inputs.append(prepared.model_input)
        return content

    def take_settled(self) -> Group:
        """Return the items that wait, unless one waits for its vector."""
        return [] if self._inputs else self.encode()

    def encode(self) -> Group:
        """Embed what waits for it, and return all items."""
        if self._inputs:
            vectors = self.encoder.embed(self.modality, self._inputs)
            for (place, content), vector in zip(self._waiting, vectors, strict=True):
                waiting = self._items[place]
                embedded = Content(content.sha256, vector, content.copied, content.truncated)
                self._items[place] = EncodedItem(waiting.item, waiting.payload, embedded)
                self._recent[content.sha256] = vector
            while len(self._recent) > RECENT_CONTENTS:
                self._recent.popitem(last=False)
        done: Group = [*self._items]
        self._items, self._waiting, self._inputs = [], [], []
        return done

    def _find_recent(self, sha256: str) -> FloatArray | None:
        if (vector := self._recent.get(sha256)) is not None:
            self._recent.move_to_end(sha256)
        return vector


def is_met(entry: Entry, met: set[tuple[Modality, str]]) -> bool:
    """Whether an item's key is one of those `met` in its unit; otherwise it is added."""
    if not isinstance(entry, Item):
        return False
    if (key := (entry.modality, entry.key)) in met:
        return True
    if len(met) < MET_KEYS:
        met.add(key)
    return False


def encoded_item(item: Item, content: Content | Reject | None) -> EncodedItem:
    """Return an item with what became of its content, as it travels."""
    payload = _to_json(item.payload)
    if not isinstance(item.content, str):
        is_missing = isinstance(content, Reject) and content.reason == Reason.IMAGE_MISSING
        # The bytes of an image are needed no more. For a file that is missing others may look.
        item = replace(item, content=str(item.content) if is_missing and isinstance(item.content, Path) else "")
    return EncodedItem(item, payload, content)


def _take_window(stream: Iterator[Entry], most_items: int) -> list[Entry]:
    """Take up to `most_items` entries, fewer if they hold more than `WINDOW_BYTES` of images."""
    window: list[Entry] = []
    size = 0
    while len(window) < most_items and size < WINDOW_BYTES and (entry := next(stream, None)) is not None:
        window.append(entry)
        size += len(entry.content) if isinstance(entry, Item) and isinstance(entry.content, bytes) else 0
    return window
