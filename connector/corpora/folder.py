"""A folder of images with captions beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Self

from typing_extensions import override

from connector.corpora.items import LONGEST_FIELD, Corpus, Entry, Item, Listed, Unit
from connector.corpora.opening import decoded, ends
from connector.corpora.picture_files import file_without_use, is_apple_double_file, is_file, is_image_name
from connector.corpora.row_checks import RowError, check_caption
from connector.rejects import Reason, Reject, at_line
from connector.resources import raise_lack
from connector.safe_text import printable

# Of an ImageFolder of Hugging Face: a table whose column `file_name` names the pictures beside it or below.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
MOST_SPLITS = 100  # a folder with more folders has other ones
UNIT_FILES = 4096


@dataclass(frozen=True, slots=True)
class Folder(Corpus):
    """A folder of images, each with the lines of the `.txt` file of the same stem as captions.

    Attributes:
        unit: what is read of it; None: everything.
    """

    format = "folder"

    unit: Unit | None = field(default=None, kw_only=True)

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        return path.is_dir()

    @override
    def units(self) -> Iterator[Unit]:
        """Cut the listing of the folder, which the units hold: nobody lists it again."""
        files, start = self._files(), 0
        while listing := tuple(islice(files, UNIT_FILES)):
            rows = sum(isinstance(entry, tuple) for entry in listing)
            yield Unit(f"files {start}-{start + len(listing)}", rows, listing=listing)
            start += len(listing)

    @override
    def within(self, unit: Unit) -> Self:
        return replace(self, unit=unit)

    @override
    def __iter__(self) -> Iterator[Entry]:
        position = 0
        for entry in self._files() if self.unit is None else self.unit.listing:
            if isinstance(entry, Reject):
                yield replace(entry, reached=position)
            elif isinstance(entry, tuple):
                position += 1
                yield from (replace(item, reached=position) for item in self._items(*entry))
            else:
                yield file_without_use(entry, self.path, position)

    def _items(self, image: Path, captions: Path | None) -> Iterator[Item | Reject]:
        """Yield an image, which is the one row of its file, and the captions, with their lines as rows."""
        try:
            str(image).encode()
        except UnicodeEncodeError as error:
            source, detail = printable(str(image)), f"rename the file: {error}"
            yield Reject(source, 0, "read", Reason.PATH_NOT_UNICODE, detail)
            return
        key = image.relative_to(self.path).as_posix()
        yield Item("image", key, key, image, {"image": str(image)}, str(image), 1)
        if captions is None:
            return
        source = printable(str(captions))
        try:
            if not captions.is_file():
                raise ValueError("expected a regular file")
            if (size := captions.stat().st_size) > LONGEST_FIELD:
                raise ValueError(f"{size} bytes, expected at most {LONGEST_FIELD}")
            text = decoded(captions.read_bytes(), source).replace("\r\n", "\n").replace("\r", "\n")
        except (OSError, ValueError) as error:
            raise_lack(error, f"reading {source}")
            yield Reject(source, 0, "read", Reason.ROW_UNREADABLE, printable(str(error)), key, "text")
            return
        lines = [(line, caption) for line, text in enumerate(text.split("\n"), start=1) if (caption := text.strip())]
        for number, (line, caption) in enumerate(lines):
            try:
                check_caption(caption)
            except RowError as error:
                detail = at_line(line, str(error))
                yield Reject(source, line, "read", error.reason, detail, f"{key}#{number}", "text")
            else:
                yield Item("text", f"{key}#{number}", key, caption, {"caption": caption}, source, line, line)

    @override
    def total(self) -> int:
        return sum(isinstance(entry, tuple) for entry in self._files())

    def may_have_captions(self) -> bool:
        """Whether an image has a caption file, or something was refused that may be one."""
        return any(not isinstance(entry, Path) and (isinstance(entry, Reject) or entry[1]) for entry in self._files())

    def _files(self) -> Iterator[Listed]:
        """Yield images with their caption files, depth first in a stable order, one directory in memory at a time.

        A file that is neither comes as its path.
        """
        stack: list[tuple[Path, frozenset[Path]]] = [(self.path, frozenset())]
        while stack:
            directory, above = stack.pop()
            try:
                if (here := directory.resolve()) in above:
                    raise OSError("the folder is linked from inside itself")
                entries = sorted(directory.iterdir(), key=lambda entry: entry.name)
                folders = {entry for entry in entries if entry.is_dir()}
            except OSError as error:
                raise_lack(error, f"reading {printable(str(directory))}")
                detail = printable(str(error))
                yield Reject(printable(str(directory)), 0, "read", Reason.FOLDER_UNREADABLE, detail)
                continue
            stack += [(entry, above | {here}) for entry in reversed(entries) if entry in folders]
            yield from _paired([entry for entry in entries if entry not in folders])


def how_to_read_metadata(folder: Path) -> str:
    """Say how the captions of an ImageFolder of Hugging Face are read; empty if `folder` is none.

    Its metadata is in the folder, or in each of the splits below it.
    """
    files = [directory / name for directory in (folder, *sorted(folder.glob("*/"))[:MOST_SPLITS]) for name in METADATA]
    metadata = [file for file in files if is_file(file) and FILE_NAME.encode() in ends(file)]
    if not metadata:
        return ""
    more = f" (and {len(metadata) - 1} more)" if len(metadata) > 1 else ""
    return (
        f"captions in {printable(str(metadata[0]))}{more} are not read with the folder: encode that file instead, with "
        f"--key {FILE_NAME} --image {FILE_NAME} --caption COLUMN"
    )


def _paired(files: Sequence[Path]) -> Iterator[Listed]:
    """Yield the images of a directory with their caption files, a reject for each other caption file, and the rest."""
    captions: dict[str, Path] = {}
    images, others, refused = [], [], []
    for file in files:
        if is_image_name(file.name) and not is_apple_double_file(file):
            images.append(file)
        elif file.suffix.lower() != ".txt" or is_apple_double_file(file):
            others.append(file)
        elif (first := captions.setdefault(file.stem, file)) is not file:
            detail = f"{first.name} holds the captions of this name: join the two files"
            refused.append((file, Reason.CAPTION_DUPLICATE, detail))
    yield from ((image, captions.get(image.stem)) for image in images)
    for stem in sorted(captions.keys() - {image.stem for image in images}):
        detail = f"expected an image beside {captions[stem].name} with the same name up to the suffix"
        refused.append((captions[stem], Reason.CAPTION_WITHOUT_IMAGE, detail))
    for file, reason, detail in refused:
        yield Reject(printable(str(file)), 0, "read", reason, printable(detail))
    yield from others
