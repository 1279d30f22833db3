"""A folder of images with captions beside them."""

from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from connector.corpora.items import IMAGE_SUFFIXES, LONGEST_FIELD, Corpus, Item
from connector.rejects import Reason, Reject
from connector.safe_text import printable


class Folder(Corpus):
    """A folder of images, each with the lines of the `.txt` file of the same stem as captions."""

    format = "folder"

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        return path.is_dir()

    @override
    def __iter__(self) -> Iterator[Item | Reject]:
        position = 0
        for entry in self._files():
            if isinstance(entry, Reject):
                yield entry
            else:
                position += 1
                yield from self._items(*entry, position)

    def _items(self, image: Path, captions: Path | None, position: int) -> Iterator[Item | Reject]:
        try:
            str(image).encode()
        except UnicodeEncodeError as error:
            source, detail = printable(str(image)), f"rename the file: {error}"
            yield Reject(source, position, "read", Reason.PATH_NOT_UNICODE, detail)
            return
        key = image.relative_to(self.path).as_posix()
        yield Item("image", key, key, image, {"image": str(image)}, str(image), position)
        if captions is None:
            return
        try:
            if not captions.is_file():
                raise ValueError("expected a regular file")
            if (size := captions.stat().st_size) > LONGEST_FIELD:
                raise ValueError(f"{size} bytes, expected at most {LONGEST_FIELD}")
            if "\0" in (text := captions.read_text(encoding="utf-8-sig")):
                raise ValueError("the text holds a NUL character")
        except (OSError, ValueError) as error:
            yield Reject(str(captions), position, "read", Reason.ROW_UNREADABLE, str(error), key, "text")
            return
        for number, caption in enumerate(filter(None, map(str.strip, text.split("\n")))):
            payload = {"caption": caption}
            yield Item("text", f"{key}#{number}", key, caption, payload, str(captions), position)

    @override
    def total(self) -> int:
        return sum(not isinstance(entry, Reject) for entry in self._files())

    def _files(self) -> Iterator[tuple[Path, Path | None] | Reject]:
        """Yield images with their caption files, depth first in a stable order, one directory in memory at a time."""
        stack: list[tuple[Path, frozenset[Path]]] = [(self.path, frozenset())]
        while stack:
            directory, above = stack.pop()
            try:
                if (here := directory.resolve()) in above:
                    raise OSError("the folder is linked from inside itself")
                entries = sorted(directory.iterdir(), key=lambda entry: entry.name)
            except OSError as error:
                yield Reject(printable(str(directory)), 0, "read", Reason.FOLDER_UNREADABLE, str(error))
                continue
            stack += [(entry, above | {here}) for entry in reversed(entries) if entry.is_dir()]
            files = [entry for entry in entries if not entry.is_dir()]
            captions = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
            images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
            yield from ((image, captions.get(image.stem)) for image in images)
            for stem in sorted(captions.keys() - {image.stem for image in images}):
                yield Reject(
                    printable(str(captions[stem])),
                    0,
                    "read",
                    Reason.CAPTION_WITHOUT_IMAGE,
                    f"expected an image beside {printable(captions[stem].name)} with the same name up to the suffix",
                )
