"""Annotation files of caption benchmarks: COCO captions, Karpathy splits and the token files of Flickr.

They name image files, but not their folder. `images` names it; otherwise the usual folders near the annotations are
tried. An image name that leads out of the folder is rejected.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from typing_extensions import override

from alignment.object_storage import is_remote
from alignment.value_kinds import kind_of
from connector.corpora.bounded_lines import LineTooLongError, bounded_lines, count_lines
from connector.corpora.manifest import Manifest, ManifestRow
from connector.corpora.opening import beginning, check_utf8, ends, opened, why_not_utf8
from connector.corpora.picture_files import is_file, is_folder
from connector.corpora.row_checks import RowError, once, without_collisions
from connector.errors import CorpusError
from connector.rejects import Reason, Reject, at_line
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
PROBED, PROBED_AFAR = 100, 10  # images to try in each of these folders, on disk and in object storage

Captioned = tuple[int, int, str, str]  # position, line, name of the image, caption


@dataclass(frozen=True, slots=True)
class Annotations(Manifest):
    """A file that names images in a folder of their own.

    Attributes:
        images: the folder; None: the first usual folder that holds one of the first images.
    """

    images: Path | None = None

    def folder(self, names: Iterable[str], *usual: str) -> Path:
        """Return the folder that the image `names` are relative to; `usual` names are tried first.

        Raises:
            CorpusError: none of the tried folders holds any of the images.
        """
        most = PROBED_AFAR if is_remote(self.images or self.path) else PROBED
        tried = [name for name in islice(names, most) if not leads_out(name)]
        bases = [self.images] if self.images else [self.path.parent, self.path.parent.parent]
        candidates = [base / subfolder for base in bases for subfolder in ("", *usual, *FOLDERS)]
        for candidate in candidates:
            if is_folder(candidate) and any(is_file(candidate / name) for name in tried):
                return candidate
        if self.images or not tried:  # each missing image becomes a reject
            return bases[0]
        raise CorpusError(
            f"corpus {self.path}: expected its images, such as {printable(tried[0])}, in this folder or the one "
            f"above, or in {', '.join((*usual, *FOLDERS))} there; name their folder with --images"
        )

    def refused(self, position: int, reason: Reason, detail: str, key: Any = None) -> Reject:
        """Return a reject for a record of this file."""
        known = printable(str(key)) if isinstance(key, (str, int)) and key != "" else None
        return Reject(str(self.path), position, "read", reason, printable(detail), known)

    def row(self, position: int, key: Any, folder: Path, name: str, fields: Mapping[str, Any]) -> ManifestRow | Reject:
        """Return a row for the image `name` in `folder`, or a reject if the name leads out of it."""
        if leads_out(name):
            return self.refused(position, Reason.PATH_UNSAFE, f"image {name!r} lies outside {folder}", key)
        return ManifestRow(position, {"key": key, "image": str(folder / name), **fields})


class JsonAnnotations(Annotations):
    """One JSON document with a list of `images`, parsed as a whole without the fields that are never used.

    Measured memory: 0.6 GB for the 600,000 captions of COCO's training set, and the same for its Karpathy split.
    """

    @override
    def total(self) -> int:
        return len(self.records(self.document(), "images"))

    def document(self) -> dict[str, Any]:
        """Parse the file.

        Raises:
            CorpusError: the file is no JSON object, or is truncated.
        """
        with opened(self.path) as file:
            try:
                document = json.load(file, object_pairs_hook=_without_tokens)
            except UnicodeDecodeError as error:
                raise CorpusError(f"corpus {self.path}: {why_not_utf8(error.object, str(self.path))}") from error
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"corpus {self.path} is not valid JSON, or is truncated: {error}") from error
        if not isinstance(document, dict):
            raise CorpusError(f"corpus {self.path}: expected a JSON object, got {kind_of(document)}")
        return document

    def records(self, document: Mapping[str, Any], name: str) -> list[Any]:
        """Return the list under `name`."""
        if isinstance(records := document.get(name), list):
            return records
        raise CorpusError(f"corpus {self.path}: expected a list under {name!r}, got {kind_of(records)}")


class CocoCaptions(JsonAnnotations):
    """The captions of COCO, `annotations/captions_val2017.json`: images, and annotations that name them by id.

    The id of an image is its key and its group. The other fields of its record become payload.
    """

    format = "coco"

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        """Look for field names of COCO."""
        return path.suffix.lower() == ".json" and bool(re.search(rb'"(annotations|image_id)"\s*:', ends(path)))

    @override
    def rows(self) -> Iterator[ManifestRow | Reject]:
        """Yield a row per image, and a reject per annotation without an image."""
        document = self.document()
        images = self.records(document, "images")
        captions: dict[Any, list[str]] = defaultdict(list)
        yield from self._captions(self.records(document, "annotations"), images, captions)
        del document["annotations"]
        split = re.search(r"(train|val|test)\d{4}", self.path.stem)
        usual = [f"{parent}{split[0]}" for parent in ("", "images/")] if split else []
        folder = self.folder((r["file_name"] for r in images if _has_text(r, "file_name")), *usual)
        met = set()
        for position, record in enumerate(images, start=1):
            if not _has_text(record, "file_name") or not _is_id(record.get("id")):
                yield self.refused(position, Reason.ROW_UNREADABLE, "expected an image with an id and a file_name")
                continue
            key = record["id"]
            if key in met:
                yield self.refused(position, Reason.KEY_DUPLICATE, f"an earlier record has image id {key!r}", key)
                continue
            met.add(key)
            rest = {name: value for name, value in record.items() if name not in ("id", "file_name")}
            fields = {**without_collisions(rest), "caption": captions.get(key, [])}
            yield self.row(position, key, folder, record["file_name"], fields)

    def _captions(
        self, annotations: Sequence[Any], images: Sequence[Any], captions: dict[Any, list[str]]
    ) -> Iterator[Reject]:
        """Fill `captions` by image id. Rejects get position 0, because annotations come before the images."""
        known = {record["id"] for record in images if isinstance(record, dict) and _is_id(record.get("id"))}
        met: set[Any] = set()
        if annotations and not any(isinstance(a, dict) and "caption" in a for a in annotations):
            raise CorpusError(
                f"corpus {self.path}: expected annotations with captions, as in a captions_*.json of COCO"
            )
        for number, annotation in enumerate(annotations, start=1):
            fields = annotation if isinstance(annotation, dict) else {}
            caption, image, name = fields.get("caption"), fields.get("image_id"), fields.get("id")
            which = f"annotation {number}"
            if not isinstance(caption, str) or not caption.strip():
                reason = Reason.CAPTION_EMPTY if isinstance(caption, str) else Reason.CAPTION_NOT_TEXT
                yield self.refused(0, reason, f"{which}: expected a caption", image)
            elif not _is_id(image) or image not in known:
                yield self.refused(0, Reason.CAPTION_WITHOUT_IMAGE, f"{which}: no image has the id {image!r}", image)
            elif _is_id(name) and name in met:
                yield self.refused(
                    0, Reason.KEY_DUPLICATE, f"{which}: an earlier annotation has the id {name!r}", image
                )
            else:
                if _is_id(name):
                    met.add(name)
                captions[image].append(caption)


class Karpathy(JsonAnnotations):
    """The splits of Karpathy, `dataset_coco.json`, `dataset_flickr30k.json` and `dataset_flickr8k.json`.

    The split becomes the payload `corpus_split`, because modalign writes `split` itself. Key and group of an image are
    its COCO id, or its file name if it has none, as in the other readers.
    """

    format = "karpathy"

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        """Look for field names of Karpathy."""
        return path.suffix.lower() == ".json" and bool(re.search(rb'"(sentences|sentids)"\s*:', ends(path)))

    @override
    def rows(self) -> Iterator[ManifestRow | Reject]:
        images = self.records(self.document(), "images")
        folder = self.folder(_name(record) for record in images if _has_text(record, "filename"))
        for position, record in enumerate(images, start=1):
            if not _has_text(record, "filename"):
                yield self.refused(position, Reason.ROW_UNREADABLE, "expected an image with a filename")
                continue
            key = record.get("cocoid", record["filename"])
            sentences = record.get("sentences")
            if not isinstance(sentences, list):
                sentences = [sentences]
            rest = {name: record[name] for name in ("split", "imgid", "cocoid") if name in record}
            fields = {**without_collisions(rest), "caption": [_raw(sentence) for sentence in sentences]}
            yield self.row(position, key, folder, _name(record), fields)


class FlickrTokens(Annotations):
    """Captions of Flickr30k and Flickr8k, one a line, in any of their formats.

        123.jpg#0<TAB>A dog runs .                results_20130124.token, Flickr8k.token.txt
        123.jpg| 0| A dog runs .                  results.csv with the header image_name| comment_number| comment
        123.jpg,0,A dog runs .                    captions.txt with the header image_name,comment_number,comment
        123.jpg,A dog runs .                      captions.txt with the header image,caption

    The file name is the key and the group.
    """

    format = "flickr"

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        """Look at the first line."""
        suffix, first = path.suffix.lower(), beginning(path).partition(b"\n")[0]
        header = first.decode("utf-8-sig", "replace")
        if suffix in (".csv", ".txt") and _splitter(header):
            return True
        return suffix == ".token" or (suffix == ".txt" and bool(re.match(r"[^\t]+#\d+\t", header)))

    @override
    def rows(self) -> Iterator[ManifestRow | Reject]:
        lines = self._lines()
        folder = self.folder(entry[2] for entry in self._lines() if isinstance(entry, tuple))
        for entry in lines:
            if isinstance(entry, Reject):
                yield entry
                continue
            position, line, name, text = entry
            caption = text if text.strip() else RowError(Reason.CAPTION_EMPTY, "expected a caption after the name")
            row = self.row(position, name, folder, name, {"caption": caption})
            yield replace(row, **({"detail": at_line(line, row.detail)} if isinstance(row, Reject) else {"line": line}))

    @override
    def total(self) -> int:
        with opened(self.path) as file:
            return count_lines(file) - self._header_lines

    @property
    def _header_lines(self) -> int:
        header = beginning(self.path).partition(b"\n")[0].decode("utf-8-sig", "replace")
        return int(_splitter(header) is not None)

    def _lines(self) -> Iterator[Captioned | Reject]:
        """Yield the lines below the header, which is no row."""
        split: Callable[[str], tuple[str, str]] = _split_at_tab
        check_utf8(self.path)
        header = self._header_lines
        with opened(self.path) as file:
            for number, raw in enumerate(bounded_lines(file), start=1):
                position = number - header
                if isinstance(raw, LineTooLongError):
                    yield self.refused(position, Reason.LINE_TOO_LONG, str(raw))
                    continue
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                    if number == 1 and (splitter := _splitter(line)):
                        split = splitter
                    elif line.strip():
                        yield position, number, *split(line)
                except UnicodeDecodeError:
                    detail = at_line(number, why_not_utf8(raw, str(self.path)))
                    yield self.refused(position, Reason.ROW_UNREADABLE, detail)
                except (ValueError, csv.Error) as error:
                    yield self.refused(position, Reason.ROW_UNREADABLE, at_line(number, str(error)))


def leads_out(name: str) -> bool:
    """Whether a path from a file could lead out of the folder that it is relative to.

    >>> leads_out("val2014/1.jpg"), leads_out("../1.jpg"), leads_out("/etc/passwd"), leads_out("C:\\\\1.jpg")
    (False, True, True, True)
    """
    windows = PureWindowsPath(name)
    return bool(windows.drive or windows.root) or ".." in windows.parts or PurePosixPath(name).is_absolute()


def _split_at_tab(line: str) -> tuple[str, str]:
    if match := re.match(r"([^\t]+)#\d+\t(.*)", line):
        return match[1], match[2]
    raise ValueError("expected NAME#NUMBER, a tab and a caption")


def _split_at_bars(line: str) -> tuple[str, str]:
    parts = line.split("|", 2)
    if len(parts) == 3 and parts[1].strip().isdigit():
        return parts[0].strip(), parts[2].strip()
    raise ValueError("expected NAME| NUMBER| CAPTION")


def _split_at_comma(line: str) -> tuple[str, str]:
    fields = next(csv.reader([line], strict=True))
    if len(fields) == 2:
        return fields[0], fields[1]
    raise ValueError(f"expected NAME,CAPTION, got {len(fields)} fields")


def _split_at_commas(line: str) -> tuple[str, str]:
    fields = next(csv.reader([line], strict=True))
    if len(fields) == 3 and fields[1].strip().isdigit():
        return fields[0], fields[2]
    raise ValueError(f"expected NAME,NUMBER,CAPTION, got {len(fields)} fields")


_HEADERS = {
    "image_name|comment_number|comment": _split_at_bars,
    "image_name,comment_number,comment": _split_at_commas,
    "image,caption": _split_at_comma,
}


def _splitter(header: str) -> Callable[[str], tuple[str, str]] | None:
    """Return how to split the lines below this one; None if it is no header."""
    return _HEADERS.get(re.sub(r'[\s"]', "", header))


def _without_tokens(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Drop the tokens of sentences, which are three quarters of a Karpathy file."""
    return once([(name, value) for name, value in pairs if name != "tokens"])


def _raw(sentence: Any) -> Any:
    """Return the text of a sentence; without one, what is no text, which is refused."""
    return sentence.get("raw") if isinstance(sentence, dict) else sentence


def _has_text(record: Any, field: str) -> bool:
    return isinstance(record, dict) and isinstance(record.get(field), str) and bool(record[field])


def _name(record: Mapping[str, Any]) -> str:
    folder = record.get("filepath")
    return f"{folder}/{record['filename']}" if folder and isinstance(folder, str) else str(record["filename"])


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)
