"""The token files of Flickr30k and Flickr8k: a caption a line."""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from typing_extensions import override

from connector.corpora.annotations import Annotations
from connector.corpora.bounded_lines import LineTooLongError, bounded_lines, count_lines
from connector.corpora.items import Unit
from connector.corpora.line_ranges import line_units, opened_within
from connector.corpora.manifest import ManifestRow
from connector.corpora.opening import beginning, check_utf8, opened, why_not_utf8
from connector.corpora.row_checks import RowError
from connector.rejects import Reason, Reject, at_line

Captioned = tuple[int, int, str, str]  # position, line, name of the image, caption


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
        folder = self._folder()
        for entry in self.lines():
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

    @override
    def units(self) -> Iterator[Unit]:
        self._folder()
        yield from line_units(self.path, self.begins_anew, header=self._header_lines)

    def _folder(self) -> Path:
        """Return the folder of the first images, whichever unit is read."""
        return self.folder(entry[2] for entry in replace(self, unit=None).lines() if isinstance(entry, tuple))

    @property
    def _named_splitter(self) -> Callable[[str], tuple[str, str]] | None:
        """How to split the lines below a header; None: there is no header."""
        return _splitter(beginning(self.path).partition(b"\n")[0].decode("utf-8-sig", "replace"))

    @property
    def _header_lines(self) -> int:
        return int(self._named_splitter is not None)

    def lines(self) -> Iterator[Captioned | Reject]:
        """Yield the lines below the header, which is no row."""
        if self.unit is None:
            check_utf8(self.path)
        splitter, before = self._named_splitter, self.unit.lines if self.unit else 0
        header, split = int(splitter is not None), splitter or _split_at_tab
        with opened_within(self.path, self.unit) as file:
            for number, raw in enumerate(bounded_lines(file, before), start=before + 1):
                position = number - header
                if isinstance(raw, LineTooLongError):
                    yield self.refused(position, Reason.LINE_TOO_LONG, str(raw))
                    continue
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                    if number > header and line.strip():
                        yield position, number, *split(line)
                except UnicodeDecodeError:
                    detail = at_line(number, why_not_utf8(raw, str(self.path)))
                    yield self.refused(position, Reason.ROW_UNREADABLE, detail)
                except (ValueError, csv.Error) as error:
                    yield self.refused(position, Reason.ROW_UNREADABLE, at_line(number, str(error)))


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
