"""Annotation files of caption benchmarks: COCO captions and Karpathy splits; `flickr_tokens` has those of Flickr.

They name image files, but not their folder. `images` names it; otherwise the usual folders near the annotations are
tried. An image name that leads out of the folder is rejected.
"""

import json
import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from typing_extensions import override

from alignment.object_storage import is_remote
from alignment.value_kinds import kind_of
from connector.corpora.file_state import FileState
from connector.corpora.items import Unit
from connector.corpora.manifest import Manifest, ManifestRow
from connector.corpora.opening import ends, opened, why_not_utf8
from connector.corpora.picture_files import is_file, is_folder
from connector.corpora.row_checks import once, without_collisions
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
UNIT_RECORDS = 4096  # images; each process that reads units parses the whole file once
PROBED, PROBED_AFAR = 100, 10  # images to try in each of these folders, on disk and in object storage


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


@dataclass(frozen=True, slots=True)
class Annotated:
    """What a JSON document of annotations holds.

    Attributes:
        images: their records.
        folder: of the files of the images.
        refused: annotations without an image.
        captions: by the id of the image.
        firsts: the position (from 1) of the first image with an id.
    """

    images: Sequence[Any]
    folder: Path
    refused: Sequence[Reject] = ()
    captions: Mapping[Any, list[str]] = field(default_factory=dict)
    firsts: Mapping[Any, int] = field(default_factory=dict)


class JsonAnnotations(Annotations):
    """One JSON document with a list of `images`, parsed as a whole without the fields that are never used.

    Measured memory: 0.6 GB for the 600,000 captions of COCO's training set, and the same for its Karpathy split.
    """

    @abstractmethod
    def read(self) -> "Annotated":
        """Parse the file.

        Raises:
            CorpusError: it is in another format, or its images are not found.
        """

    @abstractmethod
    def row_of(self, position: int, annotated: "Annotated") -> ManifestRow | Reject:
        """Return the row of the image at `position` (from 1)."""

    @override
    def total(self) -> int:
        return len(self.records(self.document(), "images"))

    @override
    def units(self) -> Iterator[Unit]:
        state = FileState.of(self.path)
        count, start, stop = len(_annotated(replace(self, unit=None), state).images), 0, 0
        while not start or stop < count:
            stop = count
            if start + UNIT_RECORDS < count:
                at = start + UNIT_RECORDS
                first = self.begins_anew(Unit("rest", None, (state,), at, count, at))
                stop = count if first is None else first.position - 1
            yield Unit(f"images {start}-{stop}", stop - start, (state,), start, stop, start)
            start = stop
            if not count:
                return

    @override
    def rows(self) -> Iterator[ManifestRow | Reject]:
        """Yield a row per image, after what is refused of the rest of the file. Those of a file are parsed once."""
        state = self.unit.files[0] if self.unit else FileState.of(self.path)
        annotated = _annotated(replace(self, unit=None), state)
        count = len(annotated.images)
        start, stop = (self.unit.start, self.unit.stop) if self.unit else (0, count)
        if not start:
            yield from annotated.refused
        for position in range(start + 1, stop + 1):
            yield self.row_of(position, annotated)
        if stop == count:
            _annotated.cache_clear()

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
    def read(self) -> "Annotated":
        """Parse the file; an annotation without an image is refused."""
        document = self.document()
        images = self.records(document, "images")
        captions: dict[Any, list[str]] = defaultdict(list)
        refused = list(self._captions(self.records(document, "annotations"), images, captions))
        split = re.search(r"(train|val|test)\d{4}", self.path.stem)
        usual = [f"{parent}{split[0]}" for parent in ("", "images/")] if split else []
        folder = self.folder((r["file_name"] for r in images if _has_text(r, "file_name")), *usual)
        firsts: dict[Any, int] = {}
        for position, record in enumerate(images, start=1):
            if _is_image(record):
                firsts.setdefault(record["id"], position)
        return Annotated(images, folder, refused, captions, firsts)

    @override
    def row_of(self, position: int, annotated: "Annotated") -> ManifestRow | Reject:
        record = annotated.images[position - 1]
        if not _is_image(record):
            return self.refused(position, Reason.ROW_UNREADABLE, "expected an image with an id and a file_name")
        key = record["id"]
        if annotated.firsts[key] < position:
            return self.refused(position, Reason.KEY_DUPLICATE, f"an earlier record has image id {key!r}", key)
        rest = {name: value for name, value in record.items() if name not in ("id", "file_name")}
        fields = {**without_collisions(rest), "caption": annotated.captions.get(key, [])}
        return self.row(position, key, annotated.folder, record["file_name"], fields)

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
    def read(self) -> "Annotated":
        images = self.records(self.document(), "images")
        return Annotated(images, self.folder(_name(record) for record in images if _has_text(record, "filename")))

    @override
    def row_of(self, position: int, annotated: "Annotated") -> ManifestRow | Reject:
        record = annotated.images[position - 1]
        if not _has_text(record, "filename"):
            return self.refused(position, Reason.ROW_UNREADABLE, "expected an image with a filename")
        key = record.get("cocoid", record["filename"])
        sentences = record.get("sentences")
        if not isinstance(sentences, list):
            sentences = [sentences]
        rest = {name: record[name] for name in ("split", "imgid", "cocoid") if name in record}
        fields = {**without_collisions(rest), "caption": [_raw(sentence) for sentence in sentences]}
        return self.row(position, key, annotated.folder, _name(record), fields)


def leads_out(name: str) -> bool:
    """Whether a path from a file could lead out of the folder that it is relative to.

    >>> leads_out("val2014/1.jpg"), leads_out("../1.jpg"), leads_out("/etc/passwd"), leads_out("C:\\\\1.jpg")
    (False, True, True, True)
    """
    windows = PureWindowsPath(name)
    return bool(windows.drive or windows.root) or ".." in windows.parts or PurePosixPath(name).is_absolute()


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


def _is_image(record: Any) -> bool:
    return _has_text(record, "file_name") and _is_id(record.get("id"))


@lru_cache(maxsize=1)
def _annotated(reader: JsonAnnotations, state: FileState) -> Annotated:
    """Parse a file once, however many of its units this process reads."""
    return reader.read()


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)
