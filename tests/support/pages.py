"""Pages as tests read them: tags, texts and rows of tables."""

from html.parser import HTMLParser
from pathlib import Path

from typing_extensions import override


class Page(HTMLParser):
    """A page as text: headings, rows of tables, lists and paragraphs.

    Attributes:
        tags: every tag with its attributes.
        strings: every text between two tags, stripped.
        texts: text by tag, in page order.
        rows: cells of every table row; `<small>` text follows after a space.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.strings: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self._open: list[tuple[str, int]] = []
        self.feed(self.html)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag in ("meta", "img"):
            return
        self.texts.setdefault(tag, []).append("")
        self._open.append((tag, len(self.texts[tag]) - 1))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    @override
    def handle_data(self, data: str) -> None:
        if data.strip():
            self.strings.append(data.strip())
        for tag, number in self._open:
            self.texts[tag][number] += data
        if any(tag in ("td", "th") for tag, _ in self._open):
            self.rows[-1][-1] += f" {data}" if self._open[-1][0] == "small" else data

    @override
    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            self._open.pop()

    @property
    def text(self) -> str:
        """All text of the body, with single spaces."""
        return " ".join(" ".join(self.texts["body"]).split())

    def of(self, tag: str) -> list[str]:
        """The texts of a tag, with single spaces."""
        return [" ".join(text.split()) for text in self.texts.get(tag, [])]

    def images(self) -> list[str]:
        """The sources of all `<img>`."""
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]

    def row(self, name: str) -> list[str]:
        """The first table row whose first cell is `name`."""
        return self._named(name)[0]

    def last_row(self, name: str) -> list[str]:
        """The last table row whose first cell is `name`."""
        return self._named(name)[-1]

    def _named(self, name: str) -> list[list[str]]:
        cells = ([" ".join(cell.split()) for cell in row] for row in self.rows)
        return [row for row in cells if row[:1] == [name]]
