"""Contact sheets: one file that shows everything, loads nothing and runs nothing."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from connector.errors import OutputError
from connector.reports.contact_sheet import AnsweredQuery, Link, RightAnswer, thumbnail, write_contact_sheet
from connector.reports.page_files import THUMBNAIL
from tests.support.errors import raises
from tests.support.page_homes import search_hit, write_picture
from tests.support.pages import Page

SCRIPT = "<script>alert('\"&')</script>"


def written(path: Path, *answers: AnsweredQuery, title: str = "a title", subtitle: str = "a subtitle") -> Page:
    write_contact_sheet(path / "page.html", title, subtitle, answers)
    return Page(path / "page.html")


def decoded(url: str) -> Image.Image:
    prefix = "data:image/jpeg;base64,"
    assert url.startswith(prefix)
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix(prefix))))


def test_what_was_asked_and_found_stands_in_it(tmp_path: Path) -> None:
    image = write_picture(tmp_path / "a.png")
    page = written(
        tmp_path,
        AnsweredQuery(
            "a red car",
            [search_hit("car", score=0.8751, image=str(image)), search_hit("bus", score=0.5, image=str(image))],
        ),
        AnsweredQuery(image, [search_hit("car#0", "text", 0.25, caption="a fast car")]),
        AnsweredQuery("nothing like it", []),
    )
    for text in ("a title", "a subtitle", "a red car", "car", "bus", "a fast car", "nothing like it", "nothing found"):
        assert text in page.strings
    assert [text for text in page.strings if text.startswith("#")] == ["#1 · 0.8751", "#2 · 0.5000", "#1 · 0.2500"]
    assert len(page.images()) == 3
    assert [text for text in page.strings if " to " in text] == ["text to image", "image to text", "text to image"]


def test_items_are_called_by_their_captions_and_by_their_keys_where_they_have_none(tmp_path: Path) -> None:
    image = str(write_picture(tmp_path / "a.png"))
    titled = search_hit("1FA77", image=image, caption="a light blue heart")
    page = written(tmp_path, AnsweredQuery("q", [titled, search_hit("2764", image=image)]))
    assert "a light blue heart" in page.strings
    assert ("1FA77" in page.strings, "2764" in page.strings) == (False, True)
    assert [attributes["title"] for tag, attributes in page.tags if tag == "li"] == ["1FA77", "2764"]


def test_a_card_says_the_rank_of_the_right_answer_and_shows_it_behind_the_hits(tmp_path: Path) -> None:
    ranking = [search_hit(str(number))._replace(group=f"g{number}") for number in range(2000)]
    shown = [
        AnsweredQuery("q", ranking[:3], group, RightAnswer.among(ranking, group)) for group in ("g1", "g1233", "none")
    ]
    page = written(tmp_path, *shown)
    assert [text for text in page.strings if text.startswith("right answer")] == [
        "right answer: #2 of 2,000",
        "right answer: #1,234 of 2,000",
    ]
    marked = [
        attributes["title"] for tag, attributes in page.tags if tag == "li" and attributes.get("class") == "right"
    ]
    assert marked == ["1", "1233"]
    assert "#1,234 · 0.5000" in page.strings


def test_numbers_and_links_stand_at_the_top(tmp_path: Path) -> None:
    tile = {"value": "0.612", "name": "Recall@10", "small": "chance 0.023"}
    link = Link("reports/audit of dot+nnn.html", "The audit")
    write_contact_sheet(tmp_path / "page.html", "t", "s", [], tiles=[tile], links=[link])
    page = Page(tmp_path / "page.html")
    assert {"0.612", "Recall@10", "chance 0.023", "The audit"} <= set(page.strings)
    assert ("a", {"href": "reports/audit%20of%20dot%2Bnnn.html"}) in page.tags


def test_what_ranks_a_seen_item_lower_stands_beside_its_score(tmp_path: Path) -> None:
    seen = search_hit("a", score=0.75)._replace(seen_offset=0.125)
    page = written(tmp_path, AnsweredQuery("q", [seen, search_hit("b", score=0.5)]))
    beside = [text for text in page.strings if text.startswith("#")]
    assert beside == ["#1 · 0.7500 − 0.1250 (seen by the fit)", "#2 · 0.5000"]


def test_it_needs_no_network_and_runs_nothing(tmp_path: Path) -> None:
    image = write_picture(tmp_path / "a.png")
    page = written(
        tmp_path,
        AnsweredQuery("q", [search_hit("a", image=str(image)), search_hit("b", image="https://example.org/b.png")]),
        AnsweredQuery(image, [search_hit("c", "text", caption="c")]),
    )
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://", html)
    assert "url(" not in html
    assert "@import" not in html
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    assert all(url.startswith("data:image/jpeg;base64,") for url in page.images())
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "page.html"}


def test_everything_that_came_from_a_corpus_is_escaped(tmp_path: Path) -> None:
    image = write_picture(tmp_path / "a.png")
    page = written(
        tmp_path,
        AnsweredQuery(
            SCRIPT, [search_hit(f'"><img src=x onerror=alert(1)>{SCRIPT}', image=str(image)), search_hit(SCRIPT)]
        ),
        AnsweredQuery(tmp_path / f"<b>{SCRIPT.replace('/', '')}", [search_hit("t", "text", caption=SCRIPT)]),
        title=SCRIPT,
        subtitle=SCRIPT,
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert "b" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.strings.count(SCRIPT) == 6  # title twice, subtitle, query, key, caption
    assert len(page.images()) == 1


def test_the_right_answer_is_marked(tmp_path: Path) -> None:
    answer = AnsweredQuery("q", [search_hit("a"), search_hit("b"), search_hit("c")], expected="group of b")
    page = written(tmp_path, answer, AnsweredQuery("q", [search_hit("a")]))
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "li"] == [None, "right", None, None]


@pytest.mark.parametrize("payload", [{}, {"image": None}, {"image": "/no/such.png"}, {"image": "broken.png"}])
def test_a_picture_that_is_gone_is_said_to_be(tmp_path: Path, payload: dict[str, Any]) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    if payload.get("image") == "broken.png":
        payload = {"image": str(tmp_path / "broken.png")}
    page = written(tmp_path, AnsweredQuery("q", [search_hit("key of it", **payload)]))
    assert page.images() == []
    assert "image file is gone or changed" in page.strings
    assert "key of it" in page.strings


@pytest.mark.parametrize("sha256", [None, "", "0" * 64, 7])
def test_a_picture_that_is_not_what_was_embedded_stays_off_the_page(tmp_path: Path, sha256: object) -> None:
    """Whoever writes to the collection may name any file of whoever searches it."""
    private = write_picture(tmp_path / "private.png")
    page = written(tmp_path, AnsweredQuery("q", [search_hit("a", image=str(private), content_sha256=sha256)]))
    assert page.images() == []
    assert "image file is gone or changed" in page.strings


def test_a_query_whose_picture_is_gone_is_named(tmp_path: Path) -> None:
    page = written(tmp_path, AnsweredQuery(tmp_path / "gone.png", [search_hit("a", "text", caption="b")]))
    assert page.images() == []
    assert "gone.png" in page.strings


def test_a_caption_that_is_missing_is_the_key(tmp_path: Path) -> None:
    assert "key#0" in written(tmp_path, AnsweredQuery("q", [search_hit("key#0", "text")])).strings


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 200), (160, 80)), ((200, 3000), (11, 160)), ((20, 10), (20, 10))]
)
def test_thumbnails_are_bounded_and_keep_their_shape(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    url = thumbnail(write_picture(tmp_path / "a.png", size))
    assert url is not None
    assert decoded(url).size == expected
    assert max(expected) <= THUMBNAIL
    assert len(url) < 40_000


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "LA"])
def test_every_kind_of_picture_has_a_thumbnail(tmp_path: Path, mode: str) -> None:
    url = thumbnail(write_picture(tmp_path / "a.png", mode=mode))
    assert url is not None
    assert decoded(url).mode == "RGB"


@pytest.mark.slow
def test_a_sheet_of_many_pictures_stays_small(tmp_path: Path) -> None:
    image = write_picture(tmp_path / "a.png", (2000, 2000))
    written(tmp_path, *(AnsweredQuery("q", [search_hit(str(n), image=str(image)) for n in range(5)]) for _ in range(4)))
    assert (tmp_path / "page.html").stat().st_size < 20 * 40_000


def test_directories_are_made_and_an_older_page_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    written(tmp_path / "deep" / "er", title="first")
    page = written(tmp_path / "deep" / "er", title="second")
    assert "second" in page.strings
    assert "first" not in page.strings
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "page.html", tmp_path):
        with raises(OutputError, place):
            write_contact_sheet(place, "t", "s", [])


def test_what_a_page_shows_may_be_in_any_script(tmp_path: Path) -> None:
    page = written(tmp_path, AnsweredQuery("красная машина \U0001f697", [search_hit("钥匙", "text", caption="سيارة")]))
    assert {"красная машина \U0001f697", "سيارة"} <= set(page.strings)
