"""Pages laid out by a real browser, with complaints about what a reader would stumble over."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
# Widths in pixels; A4 at 96 pixels an inch.
PHONE, DESK, PAPER = 390, 1280, 794
# Runs in the page and returns a list of layout faults. A pixel or two is rounding.
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


@dataclass(slots=True)
class Inspection:
    """What a browser reports about a page."""

    complaints: list[str]
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    background: str = ""
    pdf: bytes = b""


def find_browser() -> str | None:
    """Return the path of an installed browser, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Open a headless browser for the block."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS, headless=True)
        yield opened
        opened.close()


def inspect_page(
    opened: Browser, path: Path, *, width: int, scheme: Literal["light", "dark"] = "light", print_: bool = False
) -> Inspection:
    """Open a page on a screen `width` pixels wide, or on paper, and check its layout."""
    context = opened.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, inspection = context.new_page(), Inspection([])
    page.on("console", lambda message: inspection.console.append(message.text))
    page.on("pageerror", lambda error: inspection.console.append(str(error)))
    page.on("request", lambda request: inspection.requests.append(request.url))
    page.on("requestfailed", lambda request: inspection.console.append(f"failed: {request.url[:80]}"))
    if print_:
        page.emulate_media(media="print", color_scheme=scheme)
    page.goto(path.resolve().as_uri())
    inspection.complaints = evaluate(page, COMPLAINTS)
    inspection.headings = evaluate(page, "[...document.querySelectorAll('h2')].map(e => e.textContent)")
    inspection.background = evaluate(page, "getComputedStyle(document.body).backgroundColor")
    if print_:
        inspection.pdf = page.pdf(format="A4")
    context.close()
    return inspection


def evaluate(page: Any, expression: str) -> Any:
    """Return the value of a JavaScript expression on the page."""
    return page.evaluate(expression)
