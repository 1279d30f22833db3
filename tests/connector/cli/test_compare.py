"""`modalign compare` end to end: what it prints and writes, and how it ends."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from markupsafe import escape

from alignment.comparison.compare import METRICS, compare
from alignment.comparison.guidelines import advise
from alignment.comparison.table import NotRun
from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import OutputError
from connector.reports import compare_report as comparisons
from connector.reports.compare_charts import heat_map, learning_curves
from tests.support.cli import Ended, done, modalign
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.pages import Page

N = 160
QUICK = ["--method", "ridge", "--method", "rcca", "--metric", "cosine", "--metric", "chi2", "--folds", 2]
SEEN_UNSEEN = {"seen-unseen-text-to-image.svg", "seen-unseen-image-to-text.svg"}
FILES = {"compare.json", "compare.html", "heatmap.svg", "learning-curves.svg", *SEEN_UNSEEN}
NAMES = ["fake-image:small + fake-text:small", "fake-image:small + fake-text:other"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the same corpus encoded by two pairs of encoders."""
    home, place = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("corpus")
    corpus = write_manifest(place / "things.jsonl", fake_pairs(place, N))
    done("db", "upgrade", "--home", home)
    for text in ("small", "other"):
        encoders = ["--image-encoder", "fake-image:small", "--text-encoder", f"fake-text:{text}"]
        done("encode", corpus, "--set", text, *encoders, "--home", home)
    return home


@pytest.fixture(scope="module")
def report(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("reports") / "new" / "report"
    done("compare", "small", "other", *QUICK, "--to", to, "--home", home)
    return to


@pytest.fixture(scope="module")
def document(report: Path) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    return json.loads((report / "compare.json").read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.slow
def test_every_file_is_written(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == FILES


def test_the_document_holds_the_table(document: Any) -> None:
    assert set(document) == {
        "format",
        "modalign",
        "advised",
        "guidelines",
        "reference",
        "groups",
        "encoders",
        "fits",
        "rows",
        "curves",
        "not_run",
        "settings",
        "seconds",
    }
    assert [pair["name"] for pair in document["encoders"]] == NAMES
    assert document["groups"]["training"] + document["groups"]["held_out"] == N
    assert [(fit["method"], fit["encoders"]) for fit in document["fits"]] == [
        (method, pair) for method in ("ridge", "rcca") for pair in NAMES
    ]
    assert [row["metric"] for row in document["rows"]] == ["cosine", "chi2(map=split)"] * 4
    for row in document["rows"]:
        for named in (*row["recall"].values(), *row["whole"]["intervals"].values()):
            for value in named.values():
                assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
        assert row["query_microseconds"].keys() == {"image", "text"}
    for fit in document["fits"]:
        assert fit["validation"]["folds"] == 2
        assert fit["seen_offset"].keys() == {"image", "text"}
        assert all(0 < area <= 1 for area in fit["ausuc"].values())
        assert {"raw", "image_null", "text_null", "debiased", "centroid", "centred", "n", "seed"} < fit["gap"].keys()
    assert document["reference"] == "cosine"
    topics = [guideline["topic"] for guideline in document["guidelines"]]
    assert topics[:4] == ["in short", "encoders", "method", "metric"]
    assert {"more data", "gap"} <= set(topics)
    assert document["not_run"] == []
    advised = document["advised"]
    assert any(
        (row["encoders"], row["method"], row["metric"]) == (advised["encoders"], advised["method"], advised["metric"])
        for row in document["rows"]
    )


def test_the_page_shows_the_guidelines_first_and_loads_nothing(report: Path, document: Any) -> None:
    text = (report / "compare.html").read_text(encoding="utf-8")
    page = Page(report / "compare.html")
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "img")
        assert not {"src", "srcset", "href", "action"} & attributes.keys(), tag
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    places = [text.index(str(escape(guideline["says"]))) for guideline in document["guidelines"]]
    assert places == sorted(places)
    assert places[-1] < text.index("<svg") < text.index("<table")
    assert [tag for tag, _ in page.tags].count("svg") == 4


def test_the_pictures_are_svg_of_their_own(report: Path, document: Any) -> None:
    for name in ("heatmap.svg", "learning-curves.svg", *SEEN_UNSEEN):
        root = ET.fromstring((report / name).read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in ET.parse(report / "heatmap.svg").iter("{http://www.w3.org/2000/svg}text")]
    for row in document["rows"]:
        assert f"{row['whole']['intervals']['harmonic']['recall@10']['value']:.3f}" in texts
    for label in (*NAMES, "ridge", "rcca", "cosine", "chi2"):
        assert label in texts


@pytest.mark.slow
def test_a_table_and_sentences_are_printed(home: Path) -> None:
    ended = done("compare", "small", *QUICK, "--home", home)
    (run,) = re.findall(r"wrote .*reports/compare-(\d+)/compare\.html", ended.err)
    assert {path.name for path in (home / "reports" / f"compare-{run}").iterdir()} == FILES
    for text in ("unseen R@1", "harmonic R@10", "first places of seen", "fair", "new items: "):
        assert text in ended.out
    for text in ("ridge", "rcca", "chi2", "R@10", "query µs", "in short: Take ", "method: ", "metric: ", "more data: "):
        assert text in ended.out
    status = done("status", "--json", "--home", home).document["runs"][0]
    assert (status["run"], status["command"], status["outcome"]) == (int(run), "compare", "done")
    assert status["counts"] == {"fits": 2, "rows": 4, "not_run": 0}


def test_json_is_the_document(home: Path, tmp_path: Path) -> None:
    quickest = ["--method", "ridge", "--metric", "cosine", "--folds", 2]
    ended = done("compare", "small", *quickest, "--to", tmp_path / "r", "--json", "--home", home)
    written = json.loads((tmp_path / "r" / "compare.json").read_text(encoding="utf-8"))
    found = ended.document
    assert found.pop("run") > 0
    assert found == written


def test_the_page_shows_new_and_known_items_as_the_document_has_them(report: Path, document: Any) -> None:
    """Every number of the table of the whole collection, and the words beside the curves of the advised method."""
    page = Page(report / "compare.html")
    shown = [row for row in page.rows if len(row) == 10 and row[0] in ("ridge", "rcca")]
    assert len(shown) == len(document["rows"])
    for row in document["rows"]:
        without, used = row["whole"]["mean"]
        expected = [
            f"{used[kind][name]:.3f} {without[kind][name]:.3f}"
            for kind in ("unseen", "seen", "harmonic")
            for name in ("recall@1", "recall@10")
        ]
        expected += [f"{used['first_places']:.3f} {without['first_places']:.3f}", f"{used['fair']:.3f}"]
        assert [row["method"], row["metric"].partition("(")[0], *expected] in shown
    assert page.html.count('class="other-curve"') == 2  # that of the method which is not advised, in both directions
    captions = [text for text in page.texts["figcaption"] if "AUSUC" in text]
    assert len(captions) == 2
    (fit,) = (
        fit
        for fit in document["fits"]
        if (fit["encoders"], fit["method"]) == (document["advised"]["encoders"], document["advised"]["method"])
    )
    for caption, area in zip(captions, fit["ausuc"].values(), strict=True):
        assert f"{fit['method']} {area:.3f}" in caption


def test_a_given_offset_is_in_the_document_and_its_curves_have_both_points(home: Path, tmp_path: Path) -> None:
    quick = ("--method", "ridge", "--metric", "cosine", "--folds", 2, "--seen-offset", 0.5)
    done("compare", "small", *quick, "--to", tmp_path / "r", "--home", home)
    written = json.loads((tmp_path / "r" / "compare.json").read_text(encoding="utf-8"))
    assert written["settings"]["seen_offset"] == 0.5
    [fit], [row] = written["fits"], written["rows"]
    assert fit["seen_offset"] == {"image": 0.5, "text": 0.5}
    for direction in ("text-to-image", "image-to-text"):
        without, used = row["whole"][direction]
        assert without["seen_offset"] == 0 <= used["seen_offset"]
        drawn = (tmp_path / "r" / f"seen-unseen-{direction}.svg").read_text(encoding="utf-8")
        assert ("without offset" in drawn) == (used["seen_offset"] > 0)


def test_a_budget_leaves_empty_cells_and_no_curves(home: Path, tmp_path: Path) -> None:
    ended = done("compare", "small", *QUICK, "--budget", "0.001s", "--to", tmp_path / "r", "--home", home)
    assert "not run: chi2(map=split) after ridge on" in " ".join(ended.out.split())
    assert {path.name for path in (tmp_path / "r").iterdir()} == FILES - {"learning-curves.svg"}
    assert "not run" in (tmp_path / "r" / "heatmap.svg").read_text(encoding="utf-8")
    assert "Would more data help?" not in (tmp_path / "r" / "compare.html").read_text(encoding="utf-8")


def test_a_directory_that_exists_is_refused_before_anything_is_fitted(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ended = modalign("compare", "small", "--to", tmp_path, "--home", home)
    assert ended.code == 1
    assert "is not empty; name another directory with --to" in ended.error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_an_empty_directory_is_taken(home: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()  # as a run leaves it that was killed
    quick = ("--method", "ridge", "--metric", "cosine", "--folds", 2)
    done("compare", "small", *quick, "--to", tmp_path / "r", "--home", home)
    assert (tmp_path / "r" / "compare.html").exists()


def test_a_failure_leaves_no_directory(home: Path, tmp_path: Path) -> None:
    ended = modalign("compare", "small", "--folds", 1000, "--to", tmp_path / "r", "--home", home)
    assert ended.code == 1
    assert not (tmp_path / "r").exists()
    runs = done("status", "--json", "--home", home).document["runs"]
    assert (runs[0]["command"], runs[0]["outcome"]) == ("compare", "failed")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 1, "is not an embedding set"),
        (["../small"], 2, "expected 1 to 128 letters"),
        (["small", "--metric", "hamming"], 2, "unknown metric 'hamming'"),
        (["small", "--folds", "100"], 1, "needs at least 200 groups"),
        (["small", "--budget", "10"], 2, "expected a time above zero"),
        (["small", "--seen-offset", "2"], 2, "expected auto or a share of the gap"),
        ([], 2, "Missing argument 'SET...'"),
    ],
)
def test_bad_input_ends_in_one_clear_line(arguments: list[str], code: int, message: str, home: Path) -> None:
    ended: Ended = modalign("compare", *arguments, "--home", home)
    assert ended.code == code
    assert message in ended.error


def test_the_help_names_the_default_metrics() -> None:
    text = " ".join(done("compare", "--help").out.split())
    assert ", ".join(str(metric).partition("(")[0] for metric in METRICS) in text


@pytest.mark.slow
def test_a_page_escapes_what_it_is_given(home: Path, tmp_path: Path) -> None:
    made = EmbeddingSet.open(home / "sets" / "small")
    found = compare([made], methods=["ridge"], metrics=METRICS[:1], folds=2, device="cpu")
    script = "<script>alert('\"&')</script>" * 20
    pairs = [replace(found.pairs[0], name=script)]
    fitted = [replace(found.fitted[0], pair=script)]
    curves = [replace(found.curves[0], pair=script)]
    changed = replace(found, pairs=pairs, fitted=fitted, curves=curves, not_run=[NotRun(script, "late")])
    comparisons.write_comparison(tmp_path, changed, advise(changed))
    for name in FILES - {"compare.json"}:
        assert "<script" not in (tmp_path / name).read_text(encoding="utf-8")


def test_a_disk_that_is_full_is_said(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = EmbeddingSet.open(home / "sets" / "small")
    found = compare([made], methods=["ridge"], metrics=METRICS[:1], folds=2, device="cpu")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparisons, "write_durably", full)
    with pytest.raises(OutputError, match=r"cannot be written: .*No space left"):
        comparisons.write_comparison(tmp_path, found, advise(found))
    assert learning_curves(replace(found, curves=[])) is None
    assert heat_map(found, advise(found)).startswith("<svg")


@pytest.mark.slow
def test_the_frame_of_the_map_stands_on_what_is_advised_and_numbers_keep_their_contrast(home: Path) -> None:
    made = EmbeddingSet.open(home / "sets" / "small")
    found = compare([made], methods=["ridge", "procrustes"], metrics=METRICS[:2], folds=2, device="cpu")
    advised = advise(found)
    for fitted in found.fitted:
        for row in fitted.rows:
            assert row.whole is not None
            picture = heat_map(found, replace(advised, method=fitted.method, metric=row.metric))
            ((framed, fill),) = [(box, fill) for box, fill, width in cells(picture) if width == 2.5]
            inside = [(text, colour) for text, colour, x, y in labels(picture) if framed.holds(x, y)]
            assert next(text for text, _ in inside) == f"{row.whole.judged.value:.3f}"
            assert all(contrast(colour, fill) >= 4.5 for _, colour in inside)


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def holds(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and self.top <= y <= self.bottom


def cells(picture: str) -> Iterator[tuple[Box, str, float]]:
    """The filled rectangles of a picture, each with its colour and the width of its frame."""
    for d, style in re.findall(r'<path d="([^"]*)"[^>]*? style="(fill: #[0-9a-f]{6};[^"]*)"', picture):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", d)]
        width = re.search(r"stroke-width: ([\d.]+)", style)
        if len(numbers) >= 8 and width:
            xs, ys = numbers[::2], numbers[1::2]
            yield Box(min(xs), min(ys), max(xs), max(ys)), style[6:13], float(width[1])


def labels(picture: str) -> Iterator[tuple[str, str, float, float]]:
    """The texts of a picture in a colour of their own, with their places."""
    for attributes, text in re.findall(r"<text ([^>]*)>([^<]*)</text>", picture):
        place = re.search(r'x="(-?[\d.]+)" y="(-?[\d.]+)"', attributes)
        place = place or re.search(r"translate\((-?[\d.]+) (-?[\d.]+)\)", attributes)
        colour = re.search(r"fill: (#[0-9a-f]{6})", attributes)
        assert place
        yield text, colour[1] if colour else "#000000", float(place[1]), float(place[2])


def contrast(one: str, other: str) -> float:
    """The contrast of two colours by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
