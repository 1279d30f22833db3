"""Pages as tests read them: as text, and laid out by a real browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Pixels; A4 at 96 an inch.
PHONE, DESK, PAPER = 390, 1280, 794
# What a page must not have, as a list of complaints; run in the page. A pixel or two is rounding.
COMPLAINTS = """() => {
  const said = [], scroller = document.scrollingElement, text = e => e.textContent.trim().slice(0, 60);
  const scrolls = e => e.closest('.wide, figure');
  const box = e => e.getBoundingClientRect();
  const beside = (a, b) => a.right <= b.left + 1.5 || b.right <= a.left + 1.5;
  const apart = (a, b) => beside(a, b) || a.bottom <= b.top + 2 || b.bottom <= a.top + 2;
  if (scroller.scrollWidth > innerWidth) said.push(`scrolls sideways: ${scroller.scrollWidth} of ${innerWidth}`);
  for (const e of document.querySelectorAll('section, header, h1, h2, h3, p, figure, table, dl, ul, svg, img')) {
    const b = box(e);
    if (b.width < 1 || b.height < 1) said.push(`${e.tagName} has no size: ${text(e)}`);
    if (!scrolls(e) && (b.right > innerWidth + 1 || b.left < -1)) said.push(`${e.tagName} sticks out: ${text(e)}`);
  }
  for (const e of document.querySelectorAll('main *, header *')) {
    const style = getComputedStyle(e), hides = style.overflowX !== 'visible' && !e.matches('.wide, figure, svg *');
    if (hides && e.scrollWidth > e.clientWidth + 1) said.push(`${e.tagName} is cut: ${text(e)}`);
  }
  const blocks = [...document.querySelectorAll('header, section')].map(box);
  for (let i = 1; i < blocks.length; i++)
    if (blocks[i].top < blocks[i - 1].bottom - 1) said.push(`section ${i} lies on the one before`);
  for (const svg of document.querySelectorAll('svg')) {
    const frame = box(svg), texts = [...svg.querySelectorAll('text')].filter(t => text(t));
    for (const t of texts) {
      const b = box(t);
      if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1 || b.bottom > frame.bottom + 1)
        said.push(`text leaves its picture: ${text(t)} in ${svg.getAttribute('aria-label')}`);
    }
    for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++)
      if (!apart(box(texts[i]), box(texts[j])))
        said.push(`texts on each other: ${text(texts[i])} and ${text(texts[j])} in ${svg.getAttribute('aria-label')}`);
  }
  for (const i of document.querySelectorAll('img')) if (!i.naturalWidth) said.push(`picture not shown: ${i.alt}`);
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = rgb(c).map(v => (v /= 255) > .03928 ? ((v + .055) / 1.055) ** 2.4 : v / 12.92);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (rgb(c).length < 4 || rgb(c)[3] > 0) return c; } return 'rgb(255, 255, 255)'; };
  const seen = new Set();
  const read = 'h1, h2, h3, p, b, small, span, li, td, th, dt, dd, code, figure:not(:has(.heat)) text';
  for (const e of document.querySelectorAll(read)) {
    if (!text(e)) continue;
    const style = getComputedStyle(e), colour = e.closest('svg') ? style.fill : style.color, ground = behind(e);
    const [a, b] = [light(colour), light(ground)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    const what = `${e.tagName}.${e.className.baseVal ?? e.className}: ${colour} on ${ground}`;
    if (ratio < 4.5 && !seen.has(what)) { seen.add(what); said.push(`contrast ${ratio.toFixed(1)}: ${what}`); }
  }
  return said;
}"""


class Read(HTMLParser):
    """What stands on a page: its headings, the rows of its tables, its lists and paragraphs, as text.

    Attributes:
        texts: by tag, in their order.
        rows: cells of every row of a table; what is small stands after a space.
        tags: every tag with its attributes.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self._open: list[tuple[str, int]] = []
        self.feed(self.html)

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

    def handle_data(self, data: str) -> None:
        for tag, number in self._open:
            self.texts[tag][number] += data
        if any(tag in ("td", "th") for tag, _ in self._open):
            self.rows[-1][-1] += f" {data}" if self._open[-1][0] == "small" else data

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            self._open.pop()

    @property
    def text(self) -> str:
        """Everything that is read, spaces made even."""
        return " ".join(" ".join(self.texts["body"]).split())

    def of(self, tag: str) -> list[str]:
        """The texts of a tag."""
        return [" ".join(text.split()) for text in self.texts.get(tag, [])]

    def images(self) -> list[str]:
        """The sources of pictures."""
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]

    def row(self, name: str) -> list[str]:
        """The first row of a name."""
        return self._named(name)[0]

    def last_row(self, name: str) -> list[str]:
        """The last row of a name."""
        return self._named(name)[-1]

    def _named(self, name: str) -> list[list[str]]:
        cells = ([" ".join(cell.split()) for cell in row] for row in self.rows)
        return [row for row in cells if row[:1] == [name]]


@dataclass(slots=True)
class Looked:
    """What a browser says of a page."""

    complaints: list[str]
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    background: str = ""
    pdf: bytes = b""


def found_browser() -> str | None:
    """The browser of this machine, if it has one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found_browser(), args=FLAGS, headless=True)
        yield opened
        opened.close()


def look(
    opened: Browser, path: Path, *, width: int, scheme: Literal["light", "dark"] = "light", print_: bool = False
) -> Looked:
    """Open a page as somebody would, on a screen so wide or on paper."""
    context = opened.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, looked = context.new_page(), Looked([])
    page.on("console", lambda message: looked.console.append(message.text))
    page.on("pageerror", lambda error: looked.console.append(str(error)))
    page.on("request", lambda request: looked.requests.append(request.url))
    page.on("requestfailed", lambda request: looked.console.append(f"failed: {request.url[:80]}"))
    if print_:
        page.emulate_media(media="print", color_scheme=scheme)
    page.goto(path.resolve().as_uri())
    looked.complaints = evaluated(page, COMPLAINTS)
    looked.headings = evaluated(page, "[...document.querySelectorAll('h2')].map(e => e.textContent)")
    looked.background = evaluated(page, "getComputedStyle(document.body).backgroundColor")
    if print_:
        looked.pdf = page.pdf(format="A4")
    context.close()
    return looked


def evaluated(page: Any, expression: str) -> Any:
    """What an expression is in a page."""
    return page.evaluate(expression)
