"""Corpora: streams of items and rejects, read from files in constant memory.

A manifest (JSONL, CSV or Parquet) has a row per image with its captions, or a row per caption:

    key      names the row; required
    image    path of the image, relative to the manifest; may be left out for a text without an image
    caption  a text or, in JSONL and Parquet, a list of texts; may be left out for an image without a text
    group    items of one group describe the same thing; the key where it is left out

Everything else becomes payload. Consecutive rows of one key add captions to one image (a CSV has no lists). The
image is keyed by the row's key, captions by `KEY#0`, `KEY#1`, ...

A folder is read as a corpus too: every image with the lines of the `.txt` file of the same stem as its captions.
So are the files of benchmarks (`connector.corpora.annotations`) and of crawls (`connector.corpora.webdataset`,
`connector.corpora.img2dataset`); docs/corpora.md describes them all.
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
        format: one of `FORMATS`; None: the one that what lies there looks like.
        images: folder of the images that an annotation file names.

    Raises:
        SettingsError: no such format, or one that takes no `images`.
        CorpusError: nothing there, nothing that is a corpus, or what may be read in two ways.
    """
    path = Path(path).absolute()
    if format is not None and format not in FORMATS:
        raise SettingsError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    if not RANGE.search(path.name):
        _check_there(path)
    reader = FORMATS[format] if format else _recognised(path)
    if images is None:
        return reader(path)
    if not issubclass(reader, Annotations):
        named = ", ".join(name for name, each in FORMATS.items() if issubclass(each, Annotations))
        raise SettingsError(f"format {reader.format} says itself where its images are; --images goes with {named}")
    return reader(path, images.absolute())


def _check_there(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        raise CorpusError(f"corpus {path} does not exist")
    if not path.is_file():
        raise CorpusError(f"corpus {path} is no regular file, and could not be read again after a kill")


def _recognised(path: Path) -> type[Corpus]:
    """Return the reader of what lies at `path`."""
    if vectors_at(path):
        raise CorpusError(f"corpus {path} holds vectors, no images or texts: `modalign import` takes them")
    if path.is_dir() and any(path.glob("annotations/captions_*.json")):
        raise CorpusError(f"corpus {path}: expected one of its annotations/captions_*.json, or --format folder")
    found = [reader for reader in FORMATS.values() if reader.fits(path)]
    # Most folders of something hold no pictures of their own, and img2dataset's archives are its shards.
    for general, special in ((WebDataset, Img2Dataset), (Folder, Img2Dataset)):
        if general in found and special in found:
            found.remove(general)
    if len(found) > 1 and Folder in found and not _pictures(path):
        found.remove(Folder)
    if len(found) > 1:
        names = ", ".join(reader.format for reader in found)
        raise CorpusError(f"corpus {path} may be read as {names}; say which with --format")
    if not found:
        suffixes = [suffix for reader in FORMATS.values() for suffix in reader.suffixes]
        raise CorpusError(
            f"corpus {path}: expected a folder of images or a file ending in {', '.join(suffixes)}, or another format "
            f"of {', '.join(FORMATS)}, got {path.suffix or 'no suffix'}"
        )
    return found[0]


def _pictures(path: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in listed(path))
