"""Corpora: streams of items and rejects, read from files in constant memory.

A manifest (JSONL, CSV or Parquet) has a row per image with its captions, or a row per caption:

    key      names the row; required
    image    path of the image, relative to the manifest; optional for a text without an image
    caption  a text or, in JSONL and Parquet, a list of texts; optional for an image without a text
    group    items of one group describe the same thing; the default is the key

All other columns become payload. Consecutive rows with the same key add captions to one image (a CSV has no lists).
The image gets the key of the row; captions get `KEY#0`, `KEY#1`, ...

Other corpora: a folder of images with caption files (`folder`), files of benchmarks (`annotations`) and crawls
(`webdataset`, `img2dataset`). docs/corpora.md describes them all.
"""

from pathlib import Path

from connector.corpora.annotations import Annotations, CocoCaptions, FlickrTokens, Karpathy
from connector.corpora.folder import Folder
from connector.corpora.img2dataset import Img2Dataset
from connector.corpora.items import IMAGE_SUFFIXES, Corpus
from connector.corpora.manifest import Csv, JsonLines, Parquet, listed
from connector.corpora.vector_files import vectors_at
from connector.corpora.webdataset import RANGE, WebDataset
from connector.errors import CorpusError, SettingsError

FORMATS: dict[str, type[Corpus]] = {
    reader.format: reader
    for reader in (JsonLines, Csv, Parquet, Folder, CocoCaptions, Karpathy, FlickrTokens, WebDataset, Img2Dataset)
}


def open_corpus(path: Path | str, *, format: str | None = None, images: Path | None = None) -> Corpus:
    """Open the corpus at `path`.

    Args:
        path: a file, a folder, or a pattern of archives such as `train-{0000..0099}.tar`.
        format: one of `FORMATS`; None: recognise it by name and first bytes.
        images: folder that the image names of an annotation file are relative to.

    Raises:
        SettingsError: the format is unknown, or takes no `images`.
        CorpusError: the path does not exist, is in no known format, or fits more than one.
    """
    path = Path(path).absolute()
    if format is not None and format not in FORMATS:
        raise SettingsError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    if not RANGE.search(path.name):
        _check_exists(path)
    reader = FORMATS[format] if format else _recognise(path)
    if images is None:
        return reader(path)
    if not issubclass(reader, Annotations):
        annotated = ", ".join(name for name, kind in FORMATS.items() if issubclass(kind, Annotations))
        raise SettingsError(f"--images is not for format {reader.format}, only for {annotated}; leave it out")
    return reader(path, images.absolute())


def _check_exists(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        raise CorpusError(f"corpus {path} does not exist")
    if not path.is_file():
        raise CorpusError(f"corpus {path}: expected a regular file, which a later run can read again")


def _recognise(path: Path) -> type[Corpus]:
    """Return the reader whose format fits `path`."""
    if vectors_at(path):
        raise CorpusError(f"corpus {path} holds vectors instead of images or texts; use `modalign import`")
    if path.is_dir() and any(path.glob("annotations/captions_*.json")):
        raise CorpusError(
            f"corpus {path}: expected a file; name one of its annotations/captions_*.json, or add --format folder"
        )
    readers = [reader for reader in FORMATS.values() if reader.fits(path)]
    # The archives in a folder of img2dataset are its shards. Folders of other formats rarely hold images directly.
    for general, special in ((WebDataset, Img2Dataset), (Folder, Img2Dataset)):
        if general in readers and special in readers:
            readers.remove(general)
    if len(readers) > 1 and Folder in readers and not _holds_images(path):
        readers.remove(Folder)
    if len(readers) > 1:
        names = ", ".join(reader.format for reader in readers)
        raise CorpusError(f"corpus {path} fits the formats {names}; choose one with --format")
    if not readers:
        suffixes = [suffix for reader in FORMATS.values() for suffix in reader.suffixes]
        raise CorpusError(
            f"corpus {path}: expected a folder of images or a file ending in {', '.join(suffixes)}, or another format "
            f"of {', '.join(FORMATS)}, got {path.suffix or 'no suffix'}"
        )
    return readers[0]


def _holds_images(path: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in listed(path))
