"""Every page in a real browser, as wide as a phone and as a desk, light, dark and on paper."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser

from connector.reports.contact_sheet import AnsweredQuery, write_contact_sheet
from tests.support.browser import BROWSERS, DESK, PAPER, PHONE, browser, find_browser, inspect_page
from tests.support.cli import done, modalign
from tests.support.page_homes import EVERY_OPTION, HTML, LONG, SECTIONS, damage, make_home, search_hit, write_picture

NAMES = ("passed", "failed", "broken", "history", "nothing", "compare", "sheet")
COLLECTION = "a-collection-with-a-name-that-is-as-long-as-names-may-well-become-where-teams-and-dates-are-in-them"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    directory = tmp_path_factory.mktemp("pages")
    paths = {name: directory / f"{name}.html" for name in NAMES}
    home = make_home(directory)
    audit = ["audit", COLLECTION, "--pairs", "pairs", "--home", home]
    for metric in ("cosine", "chi2"):
        options = ["--quantization", "binary", "--no-rescore", "--indexing-threshold", 1] if metric == "chi2" else []
        done("push", "pairs", "--into", COLLECTION, "--alignment", "a", "--metric", metric, *options, "--home", home)
    done(*audit, "--metric", "cosine")
    done(*audit, "--metric", "cosine", *EVERY_OPTION[4:], "--report", paths["passed"], "--require", "recall@10>=0.1")
    dense = ["--require", "recall@10>=0.999", "--k", "1,5,10,20,25"]
    modalign(*audit, "--metric", "chi2", *EVERY_OPTION[6:], *dense, "--report", paths["failed"])
    done("audit", COLLECTION, "--history", "--report", paths["history"], "--home", home)
    done("push", "pairs", "--into", "empty", "--alignment", "a", "--home", home)
    done("audit", "empty", "--history", "--report", paths["nothing"], "--home", home)
    damage(home)
    modalign(*audit, "--metric", "cosine", "--report", paths["broken"])
    quick = ["--method", "ridge", "--method", "rcca", "--metric", "cosine", "--metric", "chi2", "--folds", 2]
    done("compare", "pairs", *quick, "--to", directory / "compare", "--home", home)
    (directory / "compare" / "compare.html").rename(paths["compare"])
    image = write_picture(directory / "a.png")
    answers = [
        AnsweredQuery(
            HTML, [search_hit("a", image=str(image)), search_hit(LONG), search_hit("c", image=str(image))], "group of a"
        ),
        AnsweredQuery(image, [search_hit("d", "text", caption=LONG * 3), search_hit("e", "text", caption=HTML)]),
    ]
    write_contact_sheet(paths["sheet"], LONG, HTML * 9, answers)
    return paths


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "print_"), [(PHONE, False), (DESK, False), (PAPER, True)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_laid_out_whole(
    chromium: Browser, pages: dict[str, Path], name: str, width: int, scheme: Literal["light", "dark"], print_: bool
) -> None:
    inspection = inspect_page(chromium, pages[name], width=width, scheme=scheme, print_=print_)
    assert inspection.complaints == []
    assert inspection.console == []
    pictures = [url for url in inspection.requests if url.startswith("data:image/jpeg;base64,")]
    assert [url for url in inspection.requests if url not in pictures] == [pages[name].as_uri()]
    if name in ("passed", "failed"):
        assert inspection.headings == SECTIONS
        assert pictures == [] or len(pictures) > 5
    ground = "rgb(255, 255, 255)" if print_ else {"light": "rgb(251, 251, 250)", "dark": "rgb(20, 23, 26)"}[scheme]
    assert inspection.background == ground
    assert inspection.pdf.startswith(b"%PDF") == print_


BAD = {
    "scrolls sideways": "<main><p style='width: 900px'>wide</p></main>",
    "P sticks out": "<main style='overflow: hidden'><p style='width: 900px'>wide</p></main>",
    "P is cut": "<main><p style='overflow: hidden; width: 9px; white-space: nowrap'>a long text</p></main>",
    "H2 has no size": "<main><h2 style='display: none'>a</h2></main>",
    "section 1 lies on": "<main><section>a</section><section style='margin-top: -9px'>b</section></main>",
    "text leaves its picture": "<svg width='90' height='20'><text x='80' y='15'>long</text></svg>",
    "texts on each other": "<svg width='90' height='30'><text y='20'>one</text><text x='3' y='22'>two</text></svg>",
    "picture not shown": "<img alt='a' width='9' height='9' src='data:image/png;base64,AAAA'>",
    "contrast 1.6": "<main><p style='color: #cccccc; background: white'>pale</p></main>",
}


@pytest.mark.slow
@pytest.mark.parametrize("complaint", BAD)
def test_a_page_that_is_not_is_noticed(chromium: Browser, tmp_path: Path, complaint: str) -> None:
    page = f"<!doctype html><body style='font: 16px/1.5 sans-serif'>{BAD[complaint]}"
    (tmp_path / "bad.html").write_text(page)
    complaints = inspect_page(chromium, tmp_path / "bad.html", width=PHONE).complaints
    assert [each for each in complaints if each.startswith(complaint)], complaints
    (tmp_path / "good.html").write_text("<!doctype html><body><main><p>good</p></main>")
    assert inspect_page(chromium, tmp_path / "good.html", width=PHONE).complaints == []


def test_what_a_page_asks_for_is_noticed(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<!doctype html><link rel='stylesheet' href='gone.css'><script>nothing()</script>"
    )
    inspection = inspect_page(chromium, tmp_path / "bad.html", width=PHONE)
    assert (tmp_path / "gone.css").as_uri() in inspection.requests
    assert [line for line in inspection.console if "nothing is not defined" in line]
