"""Which files of a corpus hold pictures, by their names and first bytes."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path, PurePath

from PIL import Image

from alignment.object_storage import as_remote, located
from connector.corpora.images import FORMATS
from connector.corpora.items import PassedOver
from connector.corpora.row_checks import RowError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

# Suffixes of pictures that `connector.corpora.images` does not open.
_PHONES_AND_WEB = "heic heif heics heifs hif jxl jxr hdp wdp bpg flif qoi"
_CAMERAS = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_DRAWINGS = "svg svgz eps wmf emf psd psb xcf kra"
_OTHERS = (
    "dcm djvu exr hdr blp bw cur dcx dds dib dpx fit fits fpx icns jng mng msp palm pcd pcx pct pict ras rgb rgba sgi "
    "xbm xpm xwd"
)
UNSUPPORTED_SUFFIXES = frozenset(f".{name}" for name in f"{_PHONES_AND_WEB} {_CAMERAS} {_DRAWINGS} {_OTHERS}".split())
ARCHIVE_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z")
# Not of formats whose first bytes a text may have, such as BM or P3.
RECOGNISED = frozenset(FORMATS) - {"BMP", "ICO", "PPM", "TGA"}
# Pillow's modules of the formats that are opened. `Image.registered_extensions` imports all others too: .1 s.
_PLUGINS = "Avif Bmp Gif Ico Jpeg Jpeg2K Mpo Png Ppm Tga Tiff WebP"
BEGINNING = 16  # bytes that tell a format


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that `connector.corpora.images.decode` opens, in lower case."""
    for name in _PLUGINS.split():
        import_module(f"PIL.{name}ImagePlugin")
    # A .mpo file is a JPEG with more frames, which Pillow opens as a JPEG.
    return frozenset(s for s, name in Image.EXTENSION.items() if name in {*FORMATS, "MPO"})


def is_image_name(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return PurePath(name).suffix.lower() in image_suffixes()


def with_suffix(path: Path) -> Path | RowError:
    """Return the path of a picture that a manifest names without its suffix, such as `15970` for `15970.jpg`.

    A path that is there, or has the suffix of a picture, is returned as it is, and so is one of no picture.
    It is an error if several pictures have this name.
    """
    if not path.name or is_image_name(path.name):
        return path
    found = _with_suffixes(path)
    if len(found) > 1:
        listed = ", ".join(name.name for name in found)
        detail = f"no file is at {path}, and several add a suffix: {listed}; name one"
        return RowError(Reason.IMAGE_AMBIGUOUS, printable(detail))
    return found[0] if found else path


def _with_suffixes(path: Path) -> Sequence[Path]:
    """Return the pictures of a name with a suffix added; none where there is a file of this very name."""
    if remote := as_remote(path):
        others = [] if remote.is_file() else remote.beside(f"{path.name}.")
        return [located(str(other)) for other in others if is_image_name(other.name)]
    if os.path.lexists(path):
        return []
    # Where a file system ignores case, `1.jpg` and `1.JPG` are one picture.
    names = (_first_there(f"{path}{suffix}", f"{path}{suffix.upper()}") for suffix in image_suffixes())
    return [Path(name) for name in sorted(filter(None, names))]


def _first_there(*names: str) -> str | None:
    # Of texts, not of paths: a manifest may have millions of rows, and each asks for dozens of names.
    return next(filter(os.path.lexists, names), None)


def is_unsupported_name(name: str) -> bool:
    """Whether the name is that of a picture, but of no image that is read: `a.heic`, `a.jpg~`, `a.jpg?width=300`.

    >>> [is_unsupported_name(name) for name in ("a.HEIC", "a.jpg_large", "a.png!d", "a.jpg", "a.txt", "a.jpg.txt")]
    [True, True, True, False, False, False]
    """
    if is_image_name(name):
        return False
    match = re.match(r"\.[a-z0-9]+", PurePath(name).suffix.lower())
    return match is not None and match[0] in UNSUPPORTED_SUFFIXES | image_suffixes()


def may_hold_pictures(name: str, beginning: bytes) -> bool:
    """Whether a file that is no image by its name is a picture by its first bytes, or an archive by its name."""
    if name.lower().endswith(ARCHIVE_SUFFIXES):
        return True
    Image.init()
    accepts = [Image.OPEN[form][1] for form in RECOGNISED if form in Image.OPEN]
    return any(accept and accept(beginning[:BEGINNING]) is True for accept in accepts)


def is_apple_double(name: str, beginning: bytes) -> bool:
    """Whether this is the file `._NAME` that macOS writes beside NAME, with the attributes of NAME and no content."""
    return PurePath(name).name.startswith("._") and beginning.startswith(b"\0\x05\x16\x07")


def is_apple_double_file(path: Path) -> bool:
    """Whether the file at `path` is one that macOS writes beside another."""
    return path.name.startswith("._") and is_apple_double(path.name, _beginning(path) or b"")


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; not so where the system does not say what it is."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether `path` is a file; not so where no file can have this name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def file_without_use(path: Path, folder: Path, position: int) -> Reject | PassedOver:
    """Return what becomes of a file in `folder` that is neither an image nor text to a reader.

    A picture that cannot be opened is a reject; all else is passed over.
    """
    beginning, name = _beginning(path), printable(str(path))
    if is_unsupported_name(path.name) and not is_apple_double(path.name, beginning or b""):
        key, detail = printable(path.relative_to(folder).as_posix()), unsupported(path.name)
        return Reject(name, 0, "read", Reason.IMAGE_FORMAT_UNSUPPORTED, detail, key, "image", reached=position)
    return PassedOver(name, position, beginning is None or may_hold_pictures(path.name, beginning))


def passed_over(path: Path, position: int) -> Iterator[PassedOver]:
    """Yield the file at `path` where a reader does not look, or all files below such a folder.

    Pictures and archives among them may hide items, and so may what cannot be read and folders behind links.
    """
    for file, is_hidden in _below(path) if is_folder(path) else [(path, False)]:
        beginning = None if is_hidden else _beginning(file)
        is_picture = is_image_name(file.name) or is_unsupported_name(file.name)
        may_hide = beginning is None or may_hold_pictures(file.name, beginning)
        may_hide = may_hide or (is_picture and not is_apple_double(file.name, beginning or b""))
        yield PassedOver(printable(str(file)), position, may_hide)


def _below(path: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the files below a folder, and the folders that are not looked into, and whether it is such a folder."""
    if remote := as_remote(path):
        yield from ((located(file), False) for file in remote.below())
        return
    unread: list[Path] = []
    for folder, folders, names in os.walk(path, onerror=lambda error: unread.append(Path(str(error.filename)))):
        yield from ((Path(folder, name), False) for name in sorted(names))
        yield from ((Path(folder, name), True) for name in sorted(folders) if Path(folder, name).is_symlink())
    yield from ((folder, True) for folder in unread)


def unsupported(name: str) -> str:
    """Say what to do about a picture whose name is of no format that is read."""
    return printable(f"{name}: convert it, or rename it if its format is one of {', '.join(sorted(image_suffixes()))}")


def _beginning(path: Path) -> bytes | None:
    """Return the first bytes of a regular file, none of another; None: it cannot be read, or is a link to nothing."""
    try:
        if not path.is_file():
            return b"" if path.exists() else None
        with path.open("rb") as file:
            return file.read(BEGINNING)
    except OSError:
        return None
