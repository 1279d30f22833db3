"""Annotation files of caption benchmarks: COCO captions, Karpathy splits and the token files of Flickr.

They name images by file and say nothing of where those lie. The folder is looked for beside the annotations, in the
places where the downloads put it, or is named by `images`. A name that leads out of that folder is refused.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from connector.corpora.bounded_lines import LineTooLongError, bounded_lines, count_lines
from connector.corpora.manifest import Manifest, Row, beginning, opened, without_collisions
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

FOLDERS = (
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "flickr30k_images/flickr30k_images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)
PROBED = 100  # images of a corpus that are looked for in each of these

Captioned = tuple[int, str, str]  # position, name of the image, caption


@dataclass(frozen=True, slots=True)
class Annotations(Manifest):
    """A file that names images in a folder of their own.

    Attributes:
        images: the folder; None: the first of the usual ones that holds one of the first images.
    """

    images: Path | None = None

    def folder(self, names: Iterable[str], *usual: str) -> Path:
        """Return the folder that the image `names` are relative to; `usual` are its likely names.

        Raises:
            CorpusError: none of the likely folders holds any of the images.
        """
        probed = [name for name in islice(names, PROBED) if not leads_out(name)]
        bases = [self.images] if self.images else [self.path.parent, self.path.parent.parent]
        candidates = [base / place for base in bases for place in ("", *usual, *FOLDERS)]
        for candidate in candidates:
            if any(_is_file(candidate / name) for name in probed):
                return candidate
        if self.images or not probed:  # missing images are rejects, one by one
            return bases[0]
        raise CorpusError(
            f"corpus {self.path}: expected its images, such as {printable(probed[0])}, in this folder or the one "
            f"above, or in {', '.join((*usual, *FOLDERS))} there; name their folder with --images"
        )

    def refused(self, position: int, reason: Reason, detail: str, key: Any = None) -> Reject:
        """Return the reject of a record of this file."""
        known = printable(str(key)) if isinstance(key, (str, int)) and key != "" else None
        return Reject(str(self.path), position, "read", reason, printable(detail), known)

    def row(self, position: int, key: Any, folder: Path, name: str, fields: Mapping[str, Any]) -> Row | Reject:
        """Return the row of the image `name` in `folder`."""
        if leads_out(name):
            return self.refused(position, Reason.PATH_UNSAFE, f"image {name!r} lies outside of {folder}", key)
        return Row(position, {"key": key, "image": str(folder / name), **fields})


class JsonAnnotations(Annotations):
    """One JSON document with a list of `images`. It is parsed whole, without what is never used.

    Memory, as measured: 0.6 GB for the 600,000 captions of COCO's training set, and the same for its Karpathy split.
    """

    def total(self) -> int:
        """Count the images."""
        return len(self.records(self.document(), "images"))

    def document(self) -> dict[str, Any]:
        """Parse the file.

        Raises:
            CorpusError: it is no JSON object; a file that was cut off is none.
        """
        with opened(self.path) as file:
            try:
                found = json.load(file, object_pairs_hook=_slim)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"corpus {self.path} is no JSON, or was cut off: {error}") from error
        if not isinstance(found, dict):
            raise CorpusError(f"corpus {self.path}: expected a JSON object, got {type(found).__name__}")
        return found

    def records(self, document: Mapping[str, Any], name: str) -> list[Any]:
        """Return the list that stands under `name`."""
        if isinstance(found := document.get(name), list):
            return found
        raise CorpusError(f"corpus {self.path}: expected a list under {name!r}, got {type(found).__name__}")


class CocoCaptions(JsonAnnotations):
    """The captions of COCO, `annotations/captions_val2017.json`: images, and annotations that name them by id.

    The id of an image is its key and its group. What else its record holds becomes payload.
    """

    format = "coco"

    @classmethod
    def fits(cls, path: Path) -> bool:
        """Look for the names of COCO's fields."""
        return path.suffix.lower() == ".json" and bool(re.search(rb'"(annotations|image_id)"\s*:', _ends(path)))

    def rows(self) -> Iterator[Row | Reject]:
        """Yield a row per image, and a reject per annotation that belongs to none."""
        document = self.document()
        images = self.records(document, "images")
        captions: dict[Any, list[str]] = defaultdict(list)
        yield from self._captions(self.records(document, "annotations"), images, captions)
        del document["annotations"]
        split = re.search(r"(train|val|test)\d{4}", self.path.stem)
        usual = [f"{place}{split[0]}" for place in ("", "images/")] if split else []
        folder = self.folder((r["file_name"] for r in images if _named(r, "file_name")), *usual)
        met = set()
        for position, record in enumerate(images, start=1):
            if not _named(record, "file_name") or not _is_id(record.get("id")):
                yield self.refused(position, Reason.ROW_UNREADABLE, "expected an image with an id and a file_name")
                continue
            key = record["id"]
            if key in met:
                yield self.refused(position, Reason.KEY_DUPLICATE, f"image id {key!r} stands in an earlier record", key)
                continue
            met.add(key)
            rest = {name: value for name, value in record.items() if name not in ("id", "file_name")}
            fields = {**without_collisions(rest), "caption": captions.get(key, [])}
            yield self.row(position, key, folder, record["file_name"], fields)

    def _captions(
        self, annotations: Sequence[Any], images: Sequence[Any], captions: dict[Any, list[str]]
    ) -> Iterator[Reject]:
        """Sort the captions by image; refuse what is none at position 0, before the images."""
        known = {record["id"] for record in images if isinstance(record, dict) and _is_id(record.get("id"))}
        met: set[Any] = set()
        if annotations and not any(isinstance(a, dict) and "caption" in a for a in annotations):
            raise CorpusError(
                f"corpus {self.path}: its annotations have no captions; expected a captions_*.json of COCO"
            )
        for number, annotation in enumerate(annotations, start=1):
            fields = annotation if isinstance(annotation, dict) else {}
            caption, image, name = fields.get("caption"), fields.get("image_id"), fields.get("id")
            which = f"annotation {number}"
            if not isinstance(caption, str) or not caption.strip():
                yield self.refused(0, Reason.CAPTION_NOT_TEXT, f"{which}: expected a caption", image)
            elif not _is_id(image) or image not in known:
                yield self.refused(
                    0, Reason.CAPTION_WITHOUT_IMAGE, f"{which}: there is no image of id {image!r}", image
                )
            elif _is_id(name) and name in met:
                yield self.refused(0, Reason.KEY_DUPLICATE, f"{which}: id {name!r} stands in an earlier one", image)
            else:
                if _is_id(name):
                    met.add(name)
                captions[image].append(caption)


class Karpathy(JsonAnnotations):
    """The splits of Karpathy, `dataset_coco.json`, `dataset_flickr30k.json` and `dataset_flickr8k.json`.

    The split becomes the payload `corpus_split`, because `split` says what an alignment was fitted on. The key and the
    group of an image are its id in COCO where it has one, and its file name otherwise: those of the other readers.
    """

    format = "karpathy"

    @classmethod
    def fits(cls, path: Path) -> bool:
        """Look for the names of Karpathy's fields."""
        return path.suffix.lower() == ".json" and bool(re.search(rb'"(sentences|sentids)"\s*:', _ends(path)))

    def rows(self) -> Iterator[Row | Reject]:
        """Yield a row per image."""
        images = self.records(self.document(), "images")
        folder = self.folder(_name(record) for record in images if _named(record, "filename"))
        for position, record in enumerate(images, start=1):
            if not _named(record, "filename"):
                yield self.refused(position, Reason.ROW_UNREADABLE, "expected an image with a filename")
                continue
            key = record.get("cocoid", record["filename"])
            sentences = record.get("sentences")
            if not isinstance(sentences, list) or not all(_named(sentence, "raw") for sentence in sentences):
                yield self.refused(position, Reason.CAPTION_NOT_TEXT, "expected sentences, each with its raw text", key)
                continue
            rest = {name: record[name] for name in ("split", "imgid", "cocoid") if name in record}
            fields = {**without_collisions(rest), "caption": [sentence["raw"] for sentence in sentences]}
            yield self.row(position, key, folder, _name(record), fields)


class FlickrTokens(Annotations):
    """Captions of Flickr30k and Flickr8k, one a line, in the three forms that they are handed round in.

        123.jpg#0<TAB>A dog runs .                results_20130124.token, Flickr8k.token.txt
        123.jpg| 0| A dog runs .                  results.csv, headed image_name| comment_number| comment
        123.jpg,A dog runs .                      captions.txt, headed image,caption

    The file name is the key and the group.
    """

    format = "flickr"

    @classmethod
    def fits(cls, path: Path) -> bool:
        """Look at the first line."""
        suffix, first = path.suffix.lower(), beginning(path).partition(b"\n")[0]
        if suffix in (".token", ".txt"):
            return bool(re.match(rb"[^\t]+#\d+\t|image,caption\s*$", first)) or suffix == ".token"
        return suffix == ".csv" and first.startswith(b"image_name|")

    def rows(self) -> Iterator[Row | Reject]:
        """Yield a row per line."""
        lines = self._lines()
        folder = self.folder(name for _, name, _ in (line for line in self._lines() if isinstance(line, tuple)))
        for line in lines:
            if isinstance(line, Reject):
                yield line
            else:
                position, name, caption = line
                yield self.row(position, name, folder, name, {"caption": caption})

    def total(self) -> int:
        """Count the lines."""
        with opened(self.path) as file:
            return count_lines(file)

    def _lines(self) -> Iterator[Captioned | Reject]:
        split = _by_mark
        with opened(self.path) as file:
            for position, raw in enumerate(bounded_lines(file), start=1):
                if isinstance(raw, LineTooLongError):
                    yield self.refused(position, Reason.LINE_TOO_LONG, str(raw))
                    continue
                try:
                    line = raw.decode("utf-8-sig" if position == 1 else "utf-8").strip("\r\n")
                    if position == 1 and (found := _HEADS.get(line.replace(" ", ""))):
                        split = found
                    elif line.strip():
                        yield position, *split(line)
                except (ValueError, csv.Error) as error:
                    yield self.refused(position, Reason.ROW_UNREADABLE, str(error))


def leads_out(name: str) -> bool:
    """Whether a path that somebody else wrote could lead out of the folder that it is relative to.

    >>> leads_out("val2014/1.jpg"), leads_out("../1.jpg"), leads_out("/etc/passwd"), leads_out("C:\\\\1.jpg")
    (False, True, True, True)
    """
    windows = PureWindowsPath(name)
    return bool(windows.drive or windows.root) or ".." in windows.parts or PurePosixPath(name).is_absolute()


def _by_mark(line: str) -> tuple[str, str]:
    if found := re.match(r"([^\t]+)#\d+\t(.*)", line):
        return found[1], found[2]
    raise ValueError("expected NAME#NUMBER, a tab and a caption")


def _by_bar(line: str) -> tuple[str, str]:
    parts = line.split("|", 2)
    if len(parts) == 3 and parts[1].strip().isdigit():
        return parts[0].strip(), parts[2].strip()
    raise ValueError("expected NAME| NUMBER| CAPTION")


def _by_comma(line: str) -> tuple[str, str]:
    fields = next(csv.reader([line]))
    if len(fields) == 2:
        return fields[0], fields[1]
    raise ValueError(f"expected NAME,CAPTION, got {len(fields)} fields")


_HEADS = {"image_name|comment_number|comment": _by_bar, "image,caption": _by_comma}


def _slim(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object without the words of its sentences, which are three quarters of a Karpathy file."""
    return {name: value for name, value in pairs if name != "tokens"}


def _ends(path: Path) -> bytes:
    """Return the first and the last bytes of a file, one of which names the fields of any record."""
    first = beginning(path)
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(first)))
            return first + file.read(len(first))
    except OSError:
        return first


def _named(record: Any, field: str) -> bool:
    return isinstance(record, dict) and isinstance(record.get(field), str) and bool(record[field])


def _name(record: Mapping[str, Any]) -> str:
    folder = record.get("filepath")
    return f"{folder}/{record['filename']}" if folder and isinstance(folder, str) else str(record["filename"])


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
