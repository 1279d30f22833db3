"""Corpora: streams of items and rejects, read from files in constant memory.

A manifest (JSONL, CSV or Parquet) has a row per image with its captions, or a row per caption:

    key      names the row; required
    image    path of the image, relative to the manifest; may be left out for a text without an image
    caption  a text or, in JSONL and Parquet, a list of texts; may be left out for an image without a text
    group    items of one group describe the same thing; the key where it is left out

Everything else becomes payload. Consecutive rows of one key add captions to one image (a CSV has no lists). The
image is keyed by the row's key, captions by `KEY#0`, `KEY#1`, ...

A folder is read as a corpus too: every image with the lines of the `.txt` file of the same stem as its captions.
"""

from collections.abc import Iterator
from pathlib import Path

from connector.errors import CorpusError
from connector.items import IMAGE_SUFFIXES, LONGEST_FIELD, Corpus, Item, Reject, printable
from connector.manifest import Csv, JsonLines, Parquet


class Folder(Corpus):
    """A folder of images, each with the lines of the `.txt` file of the same stem as captions."""

    def __iter__(self) -> Iterator[Item | Reject]:
        position = 0
        for found in self._files():
            if isinstance(found, Reject):
                yield found
            else:
                position += 1
                yield from self._items(*found, position)

    def _items(self, image: Path, captions: Path | None, position: int) -> Iterator[Item | Reject]:
        try:
            str(image).encode()
        except UnicodeEncodeError as error:
            source, detail = printable(str(image)), f"rename the file: {error}"
            yield Reject(source, position, "read", "path-not-unicode", detail)
            return
        key = image.relative_to(self.path).as_posix()
        yield Item("image", key, key, image, {"image": str(image)}, str(image), position)
        if captions is None:
            return
        try:
            if not captions.is_file():
                raise ValueError("no regular file")
            if (size := captions.stat().st_size) > LONGEST_FIELD:
                raise ValueError(f"{size} bytes are no captions")
            if "\0" in (text := captions.read_text(encoding="utf-8-sig")):
                raise ValueError("a NUL character in a text")
        except (OSError, ValueError) as error:
            yield Reject(str(captions), position, "read", "row-unreadable", str(error), key, "text")
            return
        for number, caption in enumerate(filter(None, map(str.strip, text.split("\n")))):
            payload = {"caption": caption}
            yield Item("text", f"{key}#{number}", key, caption, payload, str(captions), position)

    def total(self) -> int:
        """Count the images."""
        return sum(not isinstance(found, Reject) for found in self._files())

    def _files(self) -> Iterator[tuple[Path, Path | None] | Reject]:
        """Walk images with their captions depth first in a stable order, one directory in memory at a time."""
        stack: list[tuple[Path, frozenset[Path]]] = [(self.path, frozenset())]
        while stack:
            directory, above = stack.pop()
            try:
                if (here := directory.resolve()) in above:
                    raise OSError("a link to a folder that holds it")
                entries = sorted(directory.iterdir(), key=lambda entry: entry.name)
            except OSError as error:
                yield Reject(printable(str(directory)), 0, "read", "folder-unreadable", str(error))
                continue
            stack += [(entry, above | {here}) for entry in reversed(entries) if entry.is_dir()]
            files = [entry for entry in entries if not entry.is_dir()]
            captions = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
            images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
            yield from ((image, captions.get(image.stem)) for image in images)
            for stem in sorted(captions.keys() - {image.stem for image in images}):
                yield Reject(
                    printable(str(captions[stem])), 0, "read", "caption-without-image",
                    f"expected an image of the same stem beside {printable(captions[stem].name)}",
                )  # fmt: skip


READERS: dict[str, type[Corpus]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".csv": Csv,
    ".tsv": Csv,
    ".parquet": Parquet,
}


def open_corpus(path: Path | str) -> Corpus:
    """Open the corpus at `path`: a manifest by its suffix, or a folder of images.

    Raises:
        CorpusError: nothing there, or nothing that is a corpus.
    """
    path = Path(path).absolute()
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise CorpusError(f"corpus {path} does not exist")
    if not path.is_file():
        raise CorpusError(f"corpus {path} is no regular file, and could not be read again after a kill")
    try:
        return READERS[path.suffix.lower()](path)
    except KeyError:
        raise CorpusError(
            f"corpus {path}: expected a folder of images or a file ending in {', '.join(READERS)}, "
            f"got {path.suffix or 'no suffix'}"
        ) from None
