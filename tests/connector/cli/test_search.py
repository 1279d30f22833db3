"""The command `search`."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignment.metrics import MixtureOfLogits
from alignment.model.alignment import Alignment
from connector.cli.tables import search_rows
from connector.search.retriever import SearchHit
from tests.support.cli import N, done, modalign
from tests.support.fakes import write_manifest
from tests.support.page_homes import search_hit
from tests.support.sparse_copy import copy_sparse

SERVED = ["chi2(map=split)", "js(map=split)", "mlp(hidden=4)", "dot+nnn(k=8,alpha=0.75)", "cosine"]


@pytest.fixture(scope="module")
def many(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with releases under metrics of every guarantee but `bounded`."""
    home = copy_sparse(shared, tmp_path_factory.mktemp("many") / "home")
    options = [f"--metric={metric}" for metric in ("cosine", "mlp(hidden=4)", "dot+nnn(k=8)")]
    done("fit", "pairs", "--alignment", "m", "--method", "ridge", *options, "--home", home)
    asked = [f"--metric={metric}" for metric in ("chi2(map=split)", "js", "mlp(hidden=4)", "dot+nnn(k=8)", "cosine")]
    pushed = done("push", "pairs", "--into", "many", "--alignment", "m", *asked, "--json", "--home", home).document
    assert [release["metric"] for release in pushed["releases"]] == SERVED
    assert {(release["state"], release["points"]) for release in pushed["releases"]} == {("live", 2 * N)}
    assert pushed["counts"] == {"written": 2 * N * len(SERVED)}
    return home


class TestMetrics:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("metric", "printed", "guarantee", "certified", "candidates"),
        [
            ("chi2", "chi2(map=split)", "certified", True, N),
            ("chi2(map=split)", "chi2(map=split)", "certified", True, N),
            ("js", "js(map=split)", "certified", True, N),
            ("mlp(hidden=4)", "mlp(hidden=4)", "measured", True, N),  # everything was seen
            ("dot+nnn(k=8)", "dot+nnn(k=8,alpha=0.75)", "exact", None, 0),
            ("cosine", "cosine", "exact", None, 0),
        ],
    )
    def test_search_says_how_good_it_is(
        self, many: Path, metric: str, printed: str, guarantee: str, certified: bool | None, candidates: int
    ) -> None:
        arguments = ("search", "many", "red lime", "-k", 3, "--metric", metric, "--home", many)
        document = done(*arguments, "--json").document
        said = {name: document[name] for name in ("metric", "guarantee", "certified", "candidates")}
        assert said == {"metric": printed, "guarantee": guarantee, "certified": certified, "candidates": candidates}
        assert [set(item) for item in document["found"]] == [set(SearchHit._fields)] * 3
        assert not any("aligned" in item["payload"] for item in document["found"])
        for options in ((), ("--exact",)):  # without an index a search compares with every item, whatever it is asked
            assert done(*arguments, *options, "--json").document["compares_with_all"] is True
            title = " ".join(done(*arguments, *options).out.split())
            proof = "nothing better is there, 60 candidates rescored" if certified else "every item was compared"
            assert title.startswith(f"many under {printed}, {guarantee}: {proof}")

    @pytest.mark.parametrize("by", ["image", "caption", "fused"])
    @pytest.mark.parametrize("metric", ["cosine", "chi2"])
    def test_items_are_found_in_three_ways(
        self, many: Path, metric: str, by: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ("search", "many", "red lime", "-k", 3, "--metric", metric, "--by", by, "--home", many)
        document = done(*arguments, "--json").document
        assert document["by"] == by
        assert [(set(item), item["modality"], item["found_by"]) for item in document["found"]] == [
            (set(SearchHit._fields), "image", by)
        ] * 3
        ways = {"image", "caption"} if by == "fused" else {by}
        assert all(set(item["scores"]) == ways for item in document["found"])
        assert [item["caption"] is None for item in document["found"]] == [by == "image"] * 3
        monkeypatch.setenv("COLUMNS", "160")  # no name of a column is wrapped
        table = done(*arguments).out
        assert ("by caption" in table, "by image" in table) == (by == "caption" or by == "fused", by == "fused")

    def test_a_picture_is_compared_with_no_caption(self, many: Path, corpus: Path) -> None:
        picture = corpus.parent / "images" / "s0-00003.png"
        assert "by caption" in modalign("search", "many", picture, "--by", "caption", "--home", many).error

    def test_candidates_are_an_option(self, many: Path) -> None:
        arguments = ("search", "many", "red lime", "-k", 3, "--candidates", 3, "--home", many)
        for metric, guarantee, certified, proof in (
            ("chi2", "bounded", False, ": not proved that nothing better is there, --exact may prove it"),
            ("mlp(hidden=4)", "measured", None, ""),
        ):
            document = done(*arguments, "--metric", metric, "--json").document
            assert (document["guarantee"], document["certified"]) == (guarantee, certified)
            assert (document["candidates"], len(document["found"])) == (3, 3)
            title = " ".join(done(*arguments, "--metric", metric).out.split())
            assert f"{guarantee}{proof}, 3 candidates rescored #" in title
        for metric in SERVED:
            ended = modalign(*arguments, "--metric", metric, "-k", 6)
            assert "expected max_candidates of at least k, 6, got 3; raise it, or lower k" in ended.error

    def test_the_page_says_it_too(self, many: Path, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        done("search", "many", "red lime", "-k", 3, "--metric", "js", "--html", page, "--home", many)
        assert "3 best under js(map=split), certified: nothing better is there" in page.read_text(encoding="utf-8")

    @pytest.mark.slow
    def test_a_certificate_is_audited_and_can_be_required(self, many: Path) -> None:
        arguments = ("audit", "many", "--pairs", "pairs", "--require", "certified>=0.99", "--json", "--home", many)
        for metric in ("chi2", "js"):
            document = done(*arguments, "--metric", metric).document
            found = [measure for measure in document["measures"] if measure["name"] == "certified"]
            assert [(m["value"], m["low"], m["high"]) for m in found] == [(1.0, 1.0, 1.0)] * 2
            assert document["metric"] == f"{metric}(map=split)"
        for metric in ("mlp(hidden=4)", "cosine", "dot+nnn(k=8)"):
            ended = modalign(*arguments, "--metric", metric)
            assert (ended.code, "names no measure of an audit of many." in ended.error) == (2, True)
            plain = done("audit", "many", "--pairs", "pairs", "--metric", metric, "--json", "--home", many).document
            assert "certified" not in {measure["name"] for measure in plain["measures"]}

    def test_histograms_are_asked_for(self, home: Path) -> None:
        """Aligned vectors have signs: nothing becomes live, and another map works."""
        arguments = ("push", "pairs", "--into", "new", "--alignment", "a", "--home", home)
        ended = modalign(*arguments, "--metric", "chi2(map=l1)")
        assert re.search(r"metric chi2\(map=l1\): .* with a negative value, .* use map=split", ended.error)
        (run,) = done("status", "-n", 1, "--json", "--home", home).document["runs"]
        assert (run["command"], run["outcome"]) == ("push", "failed")
        assert "no live release" in modalign("search", "new", "red", "--metric", "chi2(map=l1)", "--home", home).error
        done(*arguments, "--metric", "chi2")
        assert done("search", "new", "red", "--json", "--home", home).document["metric"] == "chi2(map=split)"

    @pytest.mark.parametrize(
        ("value", "message"),
        [(3e38, "gives vectors that are not finite: its weights have diverged"), (np.nan, "are damaged (not finite: ")],
    )
    def test_weights_that_are_damaged_are_a_failure(self, home: Path, value: float, message: str) -> None:
        """Only a metric that cannot be meant is a wrong use of the command line."""
        sound = Alignment.load(home / "alignments" / "a")
        metric = MixtureOfLogits()
        weights = metric.start(sound.dim, seed=0).weights()
        weights[f"{metric}/item"].fill(value)
        replace(sound, weights=weights).save(home / "alignments" / "b")
        arguments = ("push", "pairs", "--into", "new", "--alignment", "b", "--home", home, "--metric")
        ended = modalign(*arguments, "mol")
        assert (ended.code, message in ended.error) == (1, True)
        ended = modalign(*arguments, "mol(size=3)")
        assert (ended.code, "holds no parameters for metric mol(" in ended.error) == (2, True)

    def test_what_cannot_be_pushed_is_known_before_anything_is_encoded(self, home: Path, corpus: Path) -> None:
        arguments = ("ingest", corpus, "--into", "new", "--alignment", "a", "--metric", "cosine", "--metric", "mlp")
        assert "holds no parameters for metric mlp(hidden=64)" in modalign(*arguments, "--home", home).error
        assert not (home / "sets" / "new").exists()
        assert [r["collection"] for r in done("status", "--json", "--home", home).document["releases"]] == ["things"]

    @pytest.mark.slow
    def test_the_remedy_that_is_named_works(self, home: Path) -> None:
        error = modalign("push", "pairs", "--into", "new", "--alignment", "a", "--metric", "mlp", "--home", home).error
        match = re.search(r"`modalign fit --metric '([^']*)'`", error)
        assert match
        arguments = ("--alignment", "b", "--metric", match[1], "--home", home)
        done("fit", "pairs", "--method", "ridge", *arguments)
        done("push", "pairs", "--into", "new", *arguments)

    def test_a_column_that_modalign_writes_itself_is_searched_under_another_name(
        self, home: Path, tmp_path: Path
    ) -> None:
        rows = [{"key": "a", "caption": "red", "split": "x"}, {"key": "b", "caption": "lime", "split": "y"}]
        manifest = write_manifest(tmp_path / "m.jsonl", [], *rows)
        done("ingest", manifest, "--into", "new", "--alignment", "a", "--home", home)
        condition = '{"must": [{"key": "corpus_split", "match": {"value": "y"}}]}'
        options = ("--target", "text", "--filter", condition, "--json", "--home", home)
        (hit,) = done("search", "new", "red", *options).document["found"]
        assert (hit["key"], hit["payload"]["corpus_split"], hit["payload"]["split"]) == ("b#0", "y", "new")


@pytest.mark.parametrize("name", ["q.jp2", "q.JPE", "q", "q.bin", "q.png"])
def test_an_existing_file_is_searched_as_a_picture(shared: Path, tmp_path: Path, name: str) -> None:
    form = "JPEG2000" if name == "q.jp2" else "PNG"
    Image.new("RGB", (8, 8), "red").save(tmp_path / name, form)
    found = done("search", "things", tmp_path / name, "-k", 1, "--json", "--home", shared).document["found"]
    assert [item["modality"] for item in found] == ["text"]


@pytest.mark.parametrize("name", ["dog", "q.heic", "q.txt"])
def test_an_existing_file_that_is_no_picture_is_an_error_and_no_text(shared: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no picture")
    ended = modalign("search", "things", tmp_path / name, "--home", shared)
    assert str(tmp_path / name) in ended.error
    assert "folder" in ended.error


@pytest.mark.parametrize("query", ["red lime", ".", "red." * 200, "made of open.raw wood"])
def test_what_is_no_file_is_searched_as_a_text(shared: Path, query: str) -> None:
    found = done("search", "things", query, "-k", 1, "--json", "--home", shared).document["found"]
    assert [item["modality"] for item in found] == ["image"]


def test_a_contact_sheet_is_written_on_request(shared: Path, tmp_path: Path) -> None:
    page = tmp_path / "found" / "page.html"
    ended = done("search", "things", "red lime", "-k", 4, "--html", page, "--json", "--home", shared)
    assert len(ended.document["found"]) == 4
    assert ended.err.splitlines()[-1] == f"wrote {page}"
    assert page.read_text().count("data:image/jpeg;base64,") == 4
    blocked = modalign("search", "things", "red", "--html", tmp_path, "--home", shared)
    assert "cannot be written" in blocked.error


def test_the_table_says_what_ranks_seen_items_lower_where_something_does() -> None:
    hits = [search_hit("a", score=0.75)._replace(seen_offset=0.125), search_hit("b", score=0.5)]
    rows = list(search_rows(hits))
    assert [tuple(row.values())[1:4] for row in rows] == [(0.625, 0.75, 0.125), (0.5, 0.5, 0.0)]
    assert list(rows[0])[:4] == ["#", "ranked by", "score", "seen offset"]
    assert not any({"ranked by", "seen offset"} & row.keys() for row in search_rows(hits[1:]))


def test_the_table_says_what_an_item_is_beside_its_picture() -> None:
    titled = search_hit("a")._replace(payload={"image": "photos/a.jpg", "caption": "a red kettle"})
    untitled = search_hit("b")._replace(payload={"image": "photos/b.jpg"})
    other_caption = titled._replace(caption={"caption": "the caption that counted"})
    rows = list(search_rows([titled, untitled, other_caption]))
    assert [row["image"] for row in rows] == ["a.jpg", "b.jpg", "a.jpg"]
    assert [row["caption"] for row in rows] == ["a red kettle", "", "the caption that counted"]
    assert list(rows[0])[-1] == "caption"


def test_the_table_repeats_no_key_as_a_group() -> None:
    alone, grouped = search_hit("a")._replace(group="a"), search_hit("b")._replace(group="things")
    assert "group" not in next(search_rows([alone]))
    assert [row["group"] for row in search_rows([alone, grouped])] == ["a", "things"]


def test_hits_of_the_command_carry_captions_and_the_table_shows_them(many: Path, corpus: Path) -> None:
    arguments = ("search", "many", "red lime", "-k", 2, "--home", many)
    captions = [item["payload"]["caption"] for item in done(*arguments, "--json").document["found"]]
    assert len(captions) == 2
    assert all(caption.split()[0] in done(*arguments).out for caption in captions)
