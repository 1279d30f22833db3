"""Corpora: streams of items and rejects, read from files in constant memory.

A manifest (JSONL, CSV or Parquet) has a row per image with its captions, or a row per caption:

    key      names the row; required
    image    path of the image, relative to the manifest; optional for a text without an image
    caption  a text or, in JSONL and Parquet, a list of texts; optional for an image without a text
    group    items of one group describe the same thing; the default is the key

Other columns may be named for each. All that are left become payload. Consecutive rows with the same key add captions
to one image (a CSV has no lists). The image gets the key of the row; captions get `KEY#0`, `KEY#1`, ...

Other corpora: a folder of images with caption files (`folder`), files of benchmarks (`annotations`) and crawls
(`webdataset`, `img2dataset`). docs/corpora.md describes them all.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from alignment.modality import Modality
from alignment.object_storage import is_remote, joined, located, snapshot
from alignment.plurals import counted
from connector.corpora.annotations import PROBED, PROBED_AFAR, CocoCaptions, Karpathy
from connector.corpora.columns import Columns
from connector.corpora.csv_manifest import Csv
from connector.corpora.flickr_tokens import FlickrTokens
from connector.corpora.folder import Folder, how_to_read_metadata
from connector.corpora.img2dataset import Img2Dataset
from connector.corpora.items import NOUNS, Corpus, Entry, Item, empty
from connector.corpora.opening import check_access, listed
from connector.corpora.parquet_manifest import Parquet
from connector.corpora.picture_files import is_file, is_folder, is_image_name, is_unsupported_name
from connector.corpora.samples import KeyRule
from connector.corpora.tables import JsonLines, Table
from connector.corpora.vector_files import vectors_at
from connector.corpora.webdataset import RANGE, WebDataset
from connector.errors import CorpusError, SettingsError
from connector.rejects import Reject
from connector.safe_text import printable

_log = logging.getLogger(__name__)

FORMATS: dict[str, type[Corpus]] = {
    reader.format: reader
    for reader in (JsonLines, Csv, Parquet, Folder, CocoCaptions, Karpathy, FlickrTokens, WebDataset, Img2Dataset)
}


def open_corpus(
    path: Path | str,
    *,
    format: str | None = None,
    images: Path | None = None,
    key_rule: KeyRule | None = None,
    quoting: bool | None = None,
    key: str | None = None,
    image: str | None = None,
    caption: Sequence[str] = (),
    group: str | None = None,
) -> Corpus:
    """Open the corpus at `path`.

    Args:
        path: a file, a folder, or a pattern of archives such as `train-{0000..0099}.tar`.
        format: one of `FORMATS`; None: recognise it by name and first bytes.
        images: folder that the image names of an annotation file or a manifest are relative to.
        key_rule: see `connector.corpora.webdataset.WebDataset`.
        quoting: see `connector.corpora.csv_manifest.Csv`.
        key, image, caption, group: columns of a manifest, see `connector.corpora.columns.Columns`.

    Raises:
        SettingsError: the format is unknown, or takes no such option; a column is named for two things.
        CorpusError: the path does not exist, is in no known format, fits more than one, or is not UTF-8; columns or the
            folder of images are missing, or the file cannot be read at all.
    """
    path = located(path)
    Columns.of(key, image, caption, group)
    if format is not None and format not in FORMATS:
        raise SettingsError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    if RANGE.search(path.name):
        check_access(path.parent)
    else:
        _check_exists(path)
    if printable(str(path)) != str(path):
        raise CorpusError(
            f"corpus {printable(str(path))}: expected a path in UTF-8, which SQL can record; rename the file or folder"
        )
    columns = {"key": key, "image": image, "caption": tuple(caption) or None, "group": group}
    options = {"images": images and located(images), "key_rule": key_rule, "quoting": quoting, **columns}
    given = {name: value for name, value in options.items() if value is not None}
    reader = (
        FORMATS[format] if format else _recognise(snapshot(path), tables_first=not given.keys().isdisjoint(columns))
    )
    metadata = how_to_read_metadata(path) if reader is Folder else ""
    for name in given:
        if name not in _options(reader):
            takers = ", ".join(other for other, kind in FORMATS.items() if name in _options(kind))
            option = f"--{name.replace('_', '-')}"
            raise SettingsError(
                f"{option} is not for format {reader.format}, only for {takers}; {metadata or 'leave it out'}"
            )
    if images and not is_folder(joined(located(images), ".")):
        raise CorpusError(f"--images {printable(str(images))}: expected a folder of images, found none there")
    if metadata:
        _log.warning("%s", metadata)
    make: Any = reader  # only some readers take options
    corpus: Corpus = make(path, **given)
    _look_at_first(corpus)
    return corpus


def check_holds(corpus: Corpus, encoders: Mapping[Modality, str], *, chosen: bool) -> None:
    """Look for an item, and in a manifest or a folder for what each encoder encodes, before these load.

    Args and errors: as of `connector.corpora.columns.Columns.check_encoders`.
        CorpusError: the corpus is empty, or a folder without captions.
    """
    if not any(isinstance(entry, Item | Reject) for entry in corpus):
        raise empty(corpus.path)
    if isinstance(corpus, Table):
        corpus.columns.check_encoders(corpus.path, corpus.names(), encoders, chosen=chosen)
    elif chosen and "text" in encoders and isinstance(corpus, Folder) and not corpus.may_have_captions():
        raise CorpusError(
            f"folder {corpus.path} has no captions for the text encoder {encoders['text']}: expected .txt files beside "
            "the images, with the same names up to the suffix; add them, or leave --text-encoder out"
        )
    else:
        _look_for_each(corpus, encoders)


def _look_for_each(corpus: Corpus, encoders: Mapping[Modality, str]) -> None:
    """Say which encoders have nothing to encode among the first entries."""
    missing, read = set(encoders), 0
    for entry in _first(corpus):
        read += 1
        if isinstance(entry, Item | Reject):
            missing -= {entry.modality} if entry.modality else set(encoders)  # of a refused row it may be unknown
        if not missing:
            return
    for modality in missing:
        _log.warning(
            "corpus %s: there is no %s for %s among the first %s",
            *(printable(str(corpus.path)), NOUNS[modality], encoders[modality], counted(read, "entry")),
        )


def _first(corpus: Corpus) -> Iterator[Entry]:
    return islice(corpus, PROBED_AFAR if is_remote(corpus.path) else PROBED)


def _look_at_first(corpus: Corpus) -> None:
    """Read the first entries, so that what is wrong with headers, folders and paths is known before models load."""
    missing = list[Path]()
    for entry in _first(corpus):
        if isinstance(entry, Item) and entry.modality == "image":
            if not isinstance(entry.content, Path) or is_file(entry.content):
                return
            missing.append(entry.content)
    if missing:
        _log.warning(
            "corpus %s: of its first %s none is there, such as %s; each will be a reject. --images names the folder "
            "that the paths of images are relative to",
            printable(str(corpus.path)),
            counted(len(missing), "image"),
            printable(str(missing[0])),
        )


def _options(reader: type[Corpus]) -> set[str]:
    return {field.name for field in fields(reader)}


def _check_exists(path: Path) -> None:
    check_access(path)
    if path.is_dir():
        return
    if not path.exists():
        raise CorpusError(f"corpus {path} does not exist")
    if not path.is_file():
        raise CorpusError(f"corpus {path}: expected a regular file, which a later run can read again")


def _recognise(path: Path, *, tables_first: bool) -> type[Corpus]:
    """Return the reader whose format fits `path`; `tables_first`: a manifest, if it may be one."""
    if vectors_at(path):
        raise CorpusError(f"corpus {path} holds vectors instead of images or texts; use `modalign import`")
    if path.is_dir() and any(path.glob("annotations/captions_*.json")):
        raise CorpusError(
            f"corpus {path}: expected a file; name one of its annotations/captions_*.json, or add --format folder"
        )
    readers = [reader for reader in FORMATS.values() if reader.fits(path)]
    if tables_first and (tables := [reader for reader in readers if issubclass(reader, Table)]):
        readers = [*tables]
    # The archives and tables in a folder of img2dataset are its shards. Folders of other formats rarely hold images
    # directly.
    for general, special in (
        (WebDataset, Img2Dataset),
        (Folder, Img2Dataset),
        (Parquet, Img2Dataset),
        (Csv, FlickrTokens),
    ):
        if general in readers and special in readers:
            readers.remove(general)
    if len(readers) > 1 and Folder in readers and not _holds_images(path):
        readers.remove(Folder)
    if len(readers) > 1:
        names = ", ".join(reader.format for reader in readers)
        advice = ["choose one with --format", how_to_read_metadata(path) if Folder in readers else ""]
        raise CorpusError(f"corpus {path} fits the formats {names}; {'; '.join(filter(None, advice))}")
    if not readers:
        suffixes = [suffix for reader in FORMATS.values() for suffix in reader.suffixes]
        raise CorpusError(
            f"corpus {path}: expected a folder of images or a file ending in {', '.join(suffixes)}, or another format "
            f"of {', '.join(FORMATS)}, got {path.suffix or 'no suffix'}"
        )
    return readers[0]


def _holds_images(path: Path) -> bool:
    return any(is_image_name(entry.name) or is_unsupported_name(entry.name) for entry in listed(path))
