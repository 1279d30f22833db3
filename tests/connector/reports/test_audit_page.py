"""Pages of audits: what stands on them and in which order, and that nothing keeps one from being written."""

import hashlib
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignment.modality import DIRECTIONS
from alignment.retrieval.bootstrap import Estimate
from connector.audits import run
from connector.audits.result import Audit, SpaceResult, StoredItem, WorstQuery
from connector.audits.stage_summary import StageSummary
from connector.audits.stages import STAGES
from connector.errors import OutputError
from connector.provenance.tables import EncoderRow
from connector.reports import audit_page
from connector.reports.audit_context import AuditContext
from connector.reports.audit_page import write_audit_page
from connector.reports.geometry_rows import geometry_tables
from connector.reports.glossary import sentence
from connector.reports.history_page import write_history_page
from connector.reports.page_files import THUMBNAIL, claim_page
from connector.reports.worst_queries import NOT_HASHED, Shown
from tests.support.audits import altered
from tests.support.cli import Ended, done, modalign
from tests.support.errors import raises
from tests.support.page_homes import ASK, EVERY_OPTION, HTML, KINDS, SECTIONS, damage, make_home, write_picture
from tests.support.pages import Page
from tests.support.sparse_copy import copy_sparse


@dataclass(frozen=True)
class WrittenPage:
    """A page, with what the same audit printed as JSON and the values that the page was made of."""

    page: Page
    path: Path
    document: Any
    found: Audit
    origin: AuditContext


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one audit, that no test changes."""
    home = make_home(tmp_path_factory.mktemp("things"))
    done(*ASK, "--home", home)
    return home


@pytest.fixture(scope="module")
def written(made: Path, tmp_path_factory: pytest.TempPathFactory) -> WrittenPage:
    """The second audit of a release, with everything that can be asked for."""
    path, values = tmp_path_factory.mktemp("pages") / "deep" / "er" / "page.html", []
    asked = copy_sparse(made, tmp_path_factory.mktemp("asked") / "home")
    with pytest.MonkeyPatch.context() as patched:

        def write(path: Path, found: Audit, origin: AuditContext, **bounds: int) -> None:
            values.append((found, origin))
            write_audit_page(path, found, origin, **bounds)

        patched.setattr(audit_page, "write_audit_page", write)
        ended = done(*ASK, *EVERY_OPTION, "--json", "--report", path, "--home", asked)
    assert f"wrote {path}" in ended.err.splitlines()
    ((found, origin),) = values
    return WrittenPage(Page(path), path, ended.document, found, origin)


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of the home that a test may change."""
    return copy_sparse(made, tmp_path / "home")


def page_of(path: Path, found: Audit, origin: AuditContext) -> Page:
    write_audit_page(path / "page.html", found, origin)
    return Page(path / "page.html")


def interval(its: Any) -> str:
    return f"{its['value']:.3f} {its['low']:.3f}–{its['high']:.3f}"


class TestWhatStandsOnIt:
    @pytest.mark.slow
    def test_sections_in_their_order_the_verdict_first(self, written: WrittenPage) -> None:
        assert written.page.of("h2") == SECTIONS
        assert written.page.of("h1") == ["Passed: every requirement is met."]
        assert written.page.of("title")[0] == f"things: audit {written.found.number}, passed"
        assert written.page.text.startswith(
            f"✓ passed Passed: every requirement is met. Release {written.found.row.physical_name}"
        )
        for said in ("audit 2", "of embedding set pairs", "held out"):
            assert said in written.page.of("header")[0]
        for name in SECTIONS:
            how = written.page.html.partition(f"<h2>{name}</h2>")[2].partition("</section>")[0]
            assert 'class="how"' in how, f"{name} does not say how it is read"

    def test_what_was_required_and_what_was_found_of_it(self, written: WrittenPage) -> None:
        (first, second) = [text for text in written.page.of("li") if text.startswith("recall@10")]
        for direction in DIRECTIONS:
            (measure,) = [
                m for m in written.found.measures if (m.direction, m.part, m.name) == (direction, "", "recall@10")
            ]
            assert measure.in_words in first
            assert f"{direction} recall@10 was" in second
        for sentence_ in written.found.remarks:
            assert sentence_ in written.page.of("li")

    def test_every_change_since_the_earlier_audit(self, written: WrittenPage) -> None:
        assert "Since audit 1" in written.page.of("h3")
        drifts = written.document["drifts"]
        assert {drift["measure"] for drift in drifts} >= {
            "recall@10",
            "exact.recall@1",
            "fidelity@5",
            "mrr",
            "median_rank",
        }
        cells = written.page.row("Recall@10")
        both = [drift for drift in drifts if (drift["part"], drift["measure"]) == ("", "recall@10")]
        assert cells[1:] == [
            cell
            for drift in both
            for cell in (f"{drift['before']:.3f}", f"{drift['after']:.3f}", "0.000 0.000 to 0.000", "no")
        ]
        assert f"None of {len(drifts)} comparisons" in written.page.text

    def test_the_stages_with_all_their_numbers(self, written: WrittenPage) -> None:
        of_direction = [stage for stage in written.document["stages"] if stage["direction"] == "text-to-image"]
        stages, about_seen = ([stage for stage in of_direction if stage["kind"] == kind] for kind in ("", "seen"))
        assert [stage["stage"] for stage in about_seen] == [stage["stage"] for stage in stages]
        assert [stage["stage"] for stage in stages] == [
            "reference",
            "lowering",
            "index",
            "filter:some<s>",
            "filter:none",
        ]
        for stage in stages[1:4] + about_seen[1:3]:
            name = f"{stage['stage']} against {stage['against']}"
            tables = [row for row in map(cleaned, written.page.rows) if row[0].startswith(name)]
            cells = tables[2 if stage["kind"] else 0]  # behind those of both directions
            fidelity = stage["fidelity"]["10"]
            assert cells[1:4] == [interval(stage["recall"][str(k)]) for k in (1, 5, 10)]
            assert cells[4] == f"{stage['lost']['value']:.3f} {stage['lost']['low']:.3f} to {stage['lost']['high']:.3f}"
            assert cells[5:9] == [
                interval(fidelity["mean"]),
                f"{fidelity['p5']:.2f}",
                f"{fidelity['least']:.2f}",
                f"{100 * fidelity['below90']:.1f}%",
            ]
            latency = stage["latency_ms"]
            assert cells[9] == f"{latency['p50']:.1f} / {latency['p95']:.1f} / {latency['p99']:.1f}"
        assert "not measured: the filter matches no image" in written.page.text

    def test_what_asked_about_new_and_known_items(self, written: WrittenPage) -> None:
        said = " ".join(written.page.texts["small"])
        abouts = [about for each in written.document["seen_unseen"].values() for about in each["about"].values()]
        assert len(abouts) == 4
        for about in abouts:
            assert about in said

    def test_what_captions_alone_would_find(self, written: WrittenPage) -> None:
        captions = written.document["captions"]
        assert written.found.captions is not None
        for kind in captions["kinds"]:
            row = written.page.last_row(kind["kind"])
            assert row[1] == str(kind["queries"])
            assert row[2::2] == [interval(kind["first"][way]) for way in ("image", "caption", "fused")]
            assert row[3::2] == [interval(kind["among"][way]) for way in ("image", "caption", "fused")]
        assert captions["says"]
        for said in captions["says"]:
            assert said in written.page.text

    def test_both_directions_side_by_side(self, written: WrittenPage) -> None:
        measures = {(m["direction"], m["name"]): m for m in written.document["measures"] if not m["part"]}
        for name, called in (("recall", "Recall@K"), ("exact.recall", "exact Recall@K"), ("ndcg", "nDCG@K")):
            expected = [interval(measures[direction, f"{name}@{k}"]) for direction in DIRECTIONS for k in (1, 5, 10)]
            assert written.page.row(called)[1:] == expected
        chances = [f"{measures[d, f'chance.recall@{k}']['value']:.3f}" for d in DIRECTIONS for k in (1, 5, 10)]
        assert written.page.row("chance Recall@K")[1:] == chances
        for name, called in (("mrr", "MRR"), ("r_precision", "R-precision")):
            assert written.page.last_row(called)[1:] == [
                interval(measures[direction, name]) for direction in DIRECTIONS
            ]
        ranks = [f"{measures[direction, 'median_rank']['value']:.0f}" for direction in DIRECTIONS]
        assert [cell.split()[0] for cell in written.page.last_row("median rank")[1:]] == ranks

    def test_every_measure_is_explained(self, written: WrittenPage) -> None:
        assert [m.name for m in written.found.measures if not m.part and not sentence(m.name)] == []

    def test_tables_of_the_gap_repeat_no_words(self, written: WrittenPage) -> None:
        geometry = written.found.space.geometry
        assert geometry is not None
        tables = geometry_tables(geometry)
        words = [table.title for table in tables] + [name for table in tables for name in table.rows[0]]
        words += [cell for table in tables for row in table.rows for cell in row.values() if cell[-3:].isalpha()]
        assert len(words) == len(set(words))
        assert all(row.keys() == table.rows[0].keys() for table in tables for row in table.rows)

    def test_the_gap_with_what_it_depends_on(self, written: WrittenPage) -> None:
        geometry = written.found.space.geometry
        assert geometry is not None
        assert written.page.row("gap: W2")[1] == f"{geometry.gap.debiased:.3f}"
        for direction, recalls in geometry.recall.items():
            assert written.page.row(direction)[1:] == [str(recall) for recall in recalls.values()]
        assert geometry.meaning in written.page.text
        for said in (f"n = {geometry.groups} groups", "seed 0", geometry.gap.solver, "unit vectors"):
            assert said in written.page.text

    def test_strata_by_value(self, written: WrittenPage) -> None:
        its = [m for m in written.document["measures"] if m["part"].startswith("kind=") and m["name"] == "recall@10"]
        assert {m["part"] for m in its} == {f"kind={value}" for value in KINDS}
        texts = written.page.of("text")
        for m in its:
            assert f"{m['value']:.3f}" in texts
        titles = written.page.of("title")
        for value in KINDS:
            assert titles.count(value) == 2, "once for each direction, in full"

    def test_where_it_comes_from(self, written: WrittenPage) -> None:
        row, alignment = written.found.row, written.origin.alignment
        card = written.origin.pairs.card
        for fingerprint in (
            alignment.fingerprint,
            card.fingerprint,
            *(each.fingerprint for each in written.origin.encoders.values()),
        ):
            assert fingerprint in written.page.of("code")
        for said in (
            "fake-image:small",
            "fake-text:small",
            "a: ridge(",
            row.physical_name,
            row.metric,
            "guarantee exact",
            "modalign 0.1.0",
            f"{written.found.number}, run {written.origin.run}, ",
            "every query",
            "not limited",
            '{"must": [{"key": "split", "match": {"value": "nowhere"}}]}',
            "none: every search is exact",
        ):
            assert said in written.page.text

    @pytest.mark.slow
    def test_passwords_do_not(self, written: WrittenPage, tmp_path: Path) -> None:
        origin = replace(written.origin, store="https://me:s3cret@qdrant:6333/?api_key=s3cret")
        page = page_of(tmp_path, written.found, origin)
        assert "in https://***@qdrant:6333/" in page.text
        assert "s3cret" not in page.html


def cleaned(row: list[str]) -> list[str]:
    return [" ".join(cell.split()) for cell in row]


class TestHistory:
    @pytest.mark.slow
    def test_of_one_audit_a_sentence(self, own: Path, tmp_path: Path) -> None:
        done(*ASK, "--gallery", "all", "--report", tmp_path / "one.html", "--home", own)
        page = Page(tmp_path / "one.html")
        assert "the only audit of things under cosine" in page.text
        assert page.of("h1") == ["Measured: the audit has no requirements."]

    def test_of_several_recall_beside_the_gap(self, written: WrittenPage) -> None:
        names = [attributes["aria-label"] for tag, attributes in written.page.tags if tag == "svg"]
        place = names.index("Recall@10")
        groups = written.found.space.geometry.groups if written.found.space.geometry else 0
        assert names[place : place + 3] == ["Recall@10", "fidelity@10", f"gap, {groups} groups"]

    def test_a_broken_audit_has_a_page_too(self, own: Path, tmp_path: Path) -> None:
        damage(own)
        ended = modalign(*ASK, "--require", "recall@10>=0", "--report", tmp_path / "broken.html", "--home", own)
        assert ended.code == 3
        page = Page(tmp_path / "broken.html")
        assert page.of("h1") == ["Broken: this release is damaged."]
        (why,) = [line.removeprefix("broken: ") for line in ended.err.splitlines() if line.startswith("broken: ")]
        assert f"{why}." in page.of("p")
        assert "recall@10>=0: not measured" in page.of("li")
        assert page.of("h2") == ["History", "Provenance", "Settings"]
        assert "Nothing was measured" in page.text

    def test_the_page_of_a_history(self, own: Path, tmp_path: Path) -> None:
        done(*ASK, "--home", own)
        done(*ASK, "--gallery", "all", "--home", own)
        damage(own)
        assert modalign(*ASK, "--home", own).code == 3
        ended = done("audit", "things", "--history", "--report", tmp_path / "page.html", "--json", "--home", own)
        assert f"wrote {tmp_path / 'page.html'}" in ended.err
        page, alike = Page(tmp_path / "page.html"), "cosine: pairs (queries held-out, gallery held-out)"
        assert page.of("h2") == [alike, "cosine: pairs (queries held-out, gallery all)"]
        for audit in ended.document:
            assert page.row(str(audit["audit"]))[3] == audit["verdict"]
        svgs = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
        assert len(svgs) == len(set(svgs)), "one audit alone has no trend"
        whole = {m["name"] for m in ended.document[0]["measures"] if not m["part"]}
        whole -= {name for name in whole if "chance" in name or name == "first_places.fair"}
        kinds = {"unseen", "seen", "harmonic"}
        stages = {f"{kind}{stage}" for kind in ("", "seen ") for stage in ("reference", "lowering", "index")}
        parts = {m["part"] for m in ended.document[0]["measures"]} & stages
        expected = len(whole) + len(kinds) + 3 * len(parts) - 4 + filters(ended.document)
        assert len(svgs) == expected, "a reference has recall alone"
        assert svgs[2:5] == [f"Recall@10, {kind}" for kind in ("unseen", "seen", "harmonic")]
        assert svgs[0] == "Recall@10"
        assert svgs[1].startswith("gap, ")
        assert page.html.count('<g class="cross">') == len(svgs), "the broken audit shows everywhere"

    def test_a_history_of_nothing(self, tmp_path: Path) -> None:
        write_history_page(tmp_path / "page.html", "things", [])
        assert "No audit yet" in Page(tmp_path / "page.html").text


def filters(history: Any) -> int:
    """How many pictures there are of filters."""
    its = {(m["part"], m["name"]) for audit in history for m in audit["measures"] if "filter:" in m["part"]}
    return len([name for _, name in its if name in ("recall@10", "fidelity@10", "latency.p95")])


class TestNothingBreaksIt:
    def test_everything_that_came_from_a_corpus_is_escaped(self, written: WrittenPage) -> None:
        assert HTML in written.page.text
        assert not {tag for tag, _ in written.page.tags} & {"i", "s", "script", "a", "link", "iframe", "form"}
        assert not any(name.startswith("on") for _, attributes in written.page.tags for name in attributes)
        assert "<b onclick" not in written.page.html

    def test_it_needs_no_network_and_runs_nothing(self, written: WrittenPage) -> None:
        policies = [attributes["content"] for tag, attributes in written.page.tags if "http-equiv" in attributes]
        assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
        assert not re.search(r"://(?!www\.w3\.org/)", written.page.html), "namespaces of SVG alone look like addresses"
        assert not re.search(r"url\((?!#)", written.page.html)
        assert "@import" not in written.page.html
        assert all(url.startswith("data:image/jpeg;base64,") for url in written.page.images())
        assert written.page.images(), "the worst answers show pictures"

    def test_images_that_are_gone_are_named_and_counted(self, written: WrittenPage, own: Path, tmp_path: Path) -> None:
        shown = len(written.page.images())
        files = sorted(
            {
                point.payload["image"]
                for each in written.found.worst
                for point in (each.query, *each.found, *each.expected)
                if "image" in point.payload
            }
        )
        contents = {path: Path(path).read_bytes() for path in files}
        gone, changed = files[: len(files) // 2], files[len(files) // 2]
        try:
            for path in gone:
                Path(path).unlink()
            Path(changed).unlink()
            Path(changed).symlink_to(write_picture(tmp_path / "private.png"))  # a good picture, and none of the corpus
            ended = done(*ASK, *EVERY_OPTION, "--report", tmp_path / "gone.html", "--home", own)
        finally:
            Path(changed).unlink()
            for path, content in contents.items():
                Path(path).write_bytes(content)
        assert "wrote" in ended.err
        page = Page(tmp_path / "gone.html")
        assert 0 < len(page.images()) < shown
        assert f"{len(gone) + 1} of {len(files)} image files could not be shown" in page.text
        assert f"{len(gone)} gone from disk" in page.text
        spans = page.of("span")
        assert f"{Path(changed).name}: changed on disk since they were embedded" in spans
        for path in gone:
            assert f"{Path(path).name}: gone from disk" in spans

    @pytest.mark.slow
    def test_items_are_called_by_their_captions(self, written: WrittenPage, tmp_path: Path) -> None:
        file = write_picture(tmp_path / "a.png")
        held = {"image": str(file), "content_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        query = StoredItem("1F436#0", {"caption": "a dog"})
        hit = StoredItem("1FA77", {**held, "caption": "a light blue heart"}, score=0.5)
        right = StoredItem("1F436", {**held, "caption": "a dog's face"}, True)
        untitled = StoredItem("2764", held, score=0.25)
        worst = WorstQuery("text-to-image", query, 3.0, [hit, untitled], [right])
        page = page_of(tmp_path, altered(written.found, worst=[worst]), written.origin)
        assert {"a dog", "a light blue heart", "a dog's face"} <= set(page.strings)
        assert not {"1F436#0", "1FA77", "1F436"} & set(page.strings)
        titles = {attributes.get("title") for _, attributes in page.tags}
        assert {"1F436#0", "1FA77", "1F436", "2764"} <= titles

    def test_an_image_without_a_file_is_named(self, written: WrittenPage, tmp_path: Path) -> None:
        nothing = WorstQuery("text-to-image", StoredItem("q", {}), 3.0, [StoredItem("found", {}, score=0.5)], [])
        page = page_of(tmp_path, altered(written.found, worst=[nothing]), written.origin)
        assert "found: no file was recorded" in page.of("span")
        assert "items of another embedding set" in page.text

    def test_pictures_of_imported_vectors_stay_off_the_page(self, written: WrittenPage, tmp_path: Path) -> None:
        """Their content is the vector: what their files held is not known, and a payload may name any file."""
        file = write_picture(tmp_path / "a.png")
        held = {"image": str(file), "content_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        worst = WorstQuery("text-to-image", StoredItem("q", {}), 3.0, [StoredItem("found", held, score=0.5)], [])
        origin = written.origin
        encoder = EncoderRow(modality="image", spec="imported:CLIP", fingerprint="0" * 64, dim=4)
        for encoders, shown in ((origin.encoders, 1), ({**origin.encoders, "image": encoder}, 0)):
            found = altered(written.found, worst=[worst])
            page = page_of(tmp_path, found, replace(origin, encoders=encoders))
            assert len(page.images()) == shown
            assert (NOT_HASHED in page.text) == (not shown)

    def test_its_size_is_bounded(self, written: WrittenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        noise, points = np.random.default_rng(0), []
        for number in range(30):
            path = tmp_path / f"{number}.png"
            Image.fromarray(noise.integers(0, 255, (400, 400, 3), dtype=np.uint8)).save(path)
            held = {
                "image": str(path),
                "caption": "word " * 100_000,
                "content_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            points.append(StoredItem(f"k{number}", held, score=0.5))
        each = WorstQuery("text-to-image", points[0], 9.0, points, points[:3])
        found = altered(written.found, worst=[each] * 3)
        whole = page_of(tmp_path, found, written.origin)
        assert max(map(len, whole.images())) < 40_000, f"a picture of {THUMBNAIL} pixels"
        assert len(whole.html) < 4_000_000
        monkeypatch.setattr(audit_page, "Shown", lambda hashed, max_pixels: Shown(hashed, max_pixels, left=200_000))
        cut = page_of(tmp_path, found, written.origin)
        assert 0 < sum(map(len, cut.images())) <= 200_000
        assert "left out: the page would grow too large" in cut.text
        assert len(cut.html) < 1_000_000

    def test_what_could_not_be_measured_is_said(self, written: WrittenPage, tmp_path: Path) -> None:
        refused = [
            StageSummary(stage.direction, stage.name, stage.against, why_not="exact search is refused")
            if stage.name == "lowering"
            else stage
            for stage in sorted(written.found.stages, key=lambda stage: stage.name)
            if not stage.kind
        ]
        measures = [
            replace(m, value=math.inf, low=4.0, high=math.inf) if m.name == "median_rank" else m
            for m in written.found.measures
        ]
        found = replace(
            altered(written.found, stages=refused, measures=measures, worst=[], without_relevant=7),
            space=SpaceResult("not measured: too few groups"),
        )
        page = page_of(tmp_path, found, written.origin)
        assert page.of("h2") == SECTIONS
        assert "not measured: exact search is refused" in page.text
        assert "The gap was not measured: too few groups." in page.text
        assert "There is no projection" in page.text
        assert page.last_row("median rank")[1:] == ["∞ 4–∞"] * 2
        for direction in DIRECTIONS:
            assert f"{direction}: 7 queries have no relevant item in the gallery and count as misses." in page.of("li")
        assert page.text.count("Every query with a right answer ranks it first.") == 2
        names = [row[0].split()[0] for row in page.rows if row and row[0].split()[:1] in (["reference"], ["lowering"])]
        assert names[:4] == ["reference", "lowering"] * 2, "in the order of a search, whichever was noted first"

    def test_a_change_that_is_more_than_chance_is_marked(self, written: WrittenPage, tmp_path: Path) -> None:
        drifts = [
            replace(d, change=replace(d.change, difference=Estimate(-0.25, -0.3, -0.2)))
            if not d.part and d.name in ("recall@10", "median_rank")
            else d
            for d in written.found.drifts
        ]
        page = page_of(tmp_path, replace(written.found, drifts=drifts), written.origin)
        assert page.row("Recall@10")[3:5] == ["−0.250 −0.300 to −0.200", "yes, worse"]
        assert page.row("median rank")[4] == "yes, better"
        assert f"Of {len(drifts)} comparisons, 2 are significantly worse and 2 significantly better" in page.text


class TestTheFile:
    @pytest.mark.slow
    def test_it_is_written_when_requirements_are_not_met(self, own: Path, tmp_path: Path) -> None:
        ended = modalign(
            *ASK, "--require", "recall@1>=1.1", "--require", "mrr>=0", "--report", tmp_path / "p.html", "--home", own
        )
        assert ended.code == 3
        page = Page(tmp_path / "p.html")
        assert page.of("h1") == ["Failed: 1 requirement is not met."]
        classes = {a.get("class"): a for tag, a in page.tags if tag == "li"}
        assert {"met", "unmet"} <= set(classes)
        assert any(text.startswith("recall@1>=1.1 is not met: text-to-image recall@1 is ") for text in page.of("li"))

    def test_where_it_cannot_be_written_nothing_is_audited(
        self, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        before = len(done("audit", "things", "--history", "--json", "--home", own).document)
        monkeypatch.setattr(run, "run_audits", lambda *_, **__: pytest.fail("it was audited"))
        ended = modalign(*ASK, "--report", tmp_path / "file" / "page.html", "--home", own)
        assert ended.code == 1
        assert "page.html cannot be written" in ended.error
        assert ended.error.endswith("; name another file")
        history = modalign("audit", "things", "--history", "--report", tmp_path / "file" / "p.html", "--home", own)
        assert "p.html cannot be written" in history.err
        assert history.code == 1
        assert len(done("audit", "things", "--history", "--json", "--home", own).document) == before

    def test_a_directory_is_no_page(self, own: Path, tmp_path: Path) -> None:
        ended: Ended = modalign(*ASK, "--report", tmp_path, "--home", own)
        assert (ended.code, "is a directory" in ended.error) == (2, True)
        with raises(OutputError, tmp_path):
            claim_page(tmp_path)

    def test_to_claim_it_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "old.html").write_text("old")
        claim_page(tmp_path / "new" / "page.html")
        claim_page(tmp_path / "old.html")
        assert list((tmp_path / "new").iterdir()) == []
        assert (tmp_path / "old.html").read_text() == "old"

    @pytest.mark.slow
    def test_an_older_page_stays_until_a_whole_one_replaces_it(
        self, written: WrittenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "page.html"
        path.write_text("old")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with raises(OutputError, path, "No space left"):
                write_audit_page(path, written.found, written.origin)
        assert path.read_text() == "old"
        write_audit_page(path, written.found, written.origin)
        assert Page(path).of("h2") == SECTIONS
        assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_the_order_of_stages_is_that_of_a_search() -> None:
    assert STAGES == ("reference", "lowering", "rescoring", "index", "quantization")
