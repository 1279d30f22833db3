"""Audits from the command line: bad input ends in one clear line, with the right code, and nothing is written."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import ExactRefusedError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AuditRow, MeasureRow, PerQueryRow, ReleaseRow
from connector.stores.edge import EdgeStore
from tests.support.cli import N, done, modalign
from tests.support.sparse_copy import copy_sparse
from tests.support.world import write_set

ASK = ("audit", "things", "--pairs", "pairs")
FEW = ("--k", "1")
NO_ITEM = '{"must": [{"key": "caption", "match": {"value": "no caption says this"}}]}'
ON_CAPTION = '{"must": [{"key": "caption", "match": {"value": "red"}}]}'


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, pushed: Path) -> Path:
    """A home with a live release and one audit of it, number 1."""
    home = copy_sparse(pushed, tmp_path_factory.mktemp("audited") / "home")
    done(*ASK, "--home", home)
    return home


@pytest.fixture
def untouched(shared: Path) -> Iterator[Path]:
    """The shared home, whose audits must be the same afterwards."""
    before = audits(shared)
    yield shared
    assert audits(shared) == before


def audits(home: Path) -> Any:
    """What SQL has of audits: their numbers and verdicts, and how many lines belong to them."""
    with (
        Provenance.open(f"sqlite:///{home / 'modalign.db'}", home=home) as provenance,
        provenance.database.session() as session,
    ):
        rows = [(row.id, row.verdict) for row in session.scalars(select(AuditRow))]
        return rows, *(len(session.scalars(select(table)).all()) for table in (MeasureRow, PerQueryRow))


def regrouped(home: Path, name: str, groups: Mapping[str, Sequence[str]]) -> None:
    """Write the pairs again as the set `name`, with other groups by modality."""
    pushed = EmbeddingSet.open(home / "sets" / "pairs")
    parts = [pushed.load(modality) for modality in MODALITIES]
    for part in parts:
        part.groups[:] = groups[part.modality]
    write_set(home / "sets" / name, parts, pushed.card.encoders)


class TestAskedWrongly:
    """What only the command line is wrong about: code 2, and no audit."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--k", ""], "expected numbers such as 1,5,10, got ''"),
            (["--k", "1,,2"], "expected numbers such as 1,5,10, got '1,,2'"),
            (["--k", "0"], "expected every k in the range 1 to 10000, got [0]"),
            (["--k", "-3,5"], "expected every k in the range 1 to 10000, got [-3, 5]"),
            (["--k", "10001"], "expected every k in the range 1 to 10000, got [10001]"),
            (["--k", "1" + "0" * 30], "expected every k in the range 1 to 10000, got [1000"),
            (["--k", "9" * 5000], "expected numbers such as 1,5,10, got '999"),
            (["--sample", "0"], "expected a whole number in the range 1<=x<=2147483647, got '0'"),
            (["--sample", "-1"], "expected a whole number in the range 1<=x<=2147483647, got '-1'"),
            (["--max-qps", "0"], "expected a number in the range 0.001<=x<=1000000, got '0'"),
            (["--max-qps", "-2"], "expected a number in the range 0.001<=x<=1000000, got '-2'"),
            (["--max-qps", "1e-320"], "expected a number in the range 0.001<=x<=1000000, got '1e-320'"),
            (["--max-qps", "nan"], "expected a number in the range 0.001<=x<=1000000, got 'nan'"),
            (["--max-qps", "inf"], "expected a number in the range 0.001<=x<=1000000, got 'inf'"),
            (["--max-qps", "fast"], "expected a number in the range 0.001<=x<=1000000, got 'fast'"),
            (["--seed", "-1"], "expected a whole number in the range 0<=x<=4294967295, got '-1'"),
            (["--baseline", "nonsense"], "expected last, live or the number of an audit, got 'nonsense'"),
            (["--baseline", ""], "expected last, live or the number of an audit, got ''"),
            (["--baseline", "-1"], "expected last, live or the number of an audit, got '-1'"),
            (["--baseline", "9" * 30], "expected last, live or the number of an audit, got '999"),
            (["--baseline", "999"], "there is no audit 999; `modalign audit COLLECTION --history` lists them"),
            (["--require", "recal@10>=1"], "'recal@10>=1' names no measure of an audit of things.cosine."),
            (["--require", "nowhere:recall@1>=1"], "names no measure of an audit of things.cosine."),
            (["--require", "recall@10"], "expected MEASURE>=NUMBER such as"),
            (["--require", "recall@10>=nan"], "expected MEASURE>=NUMBER such as"),
            (["--require", "recall@1 drop>=0.1"], "expected drop<=NUMBER of at least 0"),
            (["--require", "recall@1 drop<=-0.1"], "expected drop<=NUMBER of at least 0"),
            (["--require", "recall@1 drop<=0.1"], "say since which audit with --baseline last, live or the number"),
            (
                ["--require", "mutual_neighbours drop<=0.1", "--baseline", "1"],
                "since audit 1, which did not measure it query by query; it has recall@1, ",
            ),
            (["--k", "3", "--require", "recall@3 drop<=0.1", "--baseline", "1"], "since audit 1, which did not"),
            (["--filter", "only a name"], "expected NAME=JSON, got 'only a name'"),
            (["--filter", '={"must": []}'], "expected NAME=JSON, got "),
            (["--filter", "de=no json"], "filter de is no JSON (Expecting value"),
            (["--filter", 'de={"mus": []}'], "filter de is not valid at mus; expected a Qdrant filter such as"),
            (["--filter", "de=[]"], "filter de is not valid at (top)"),
            (["--filter", "de={}", "--filter", "de={}"], "expected a different name for each filter"),
            (["--slice", "nowhere"], "slice: no query has a payload field 'nowhere'; they have caption, image"),
            (["--slice", ""], "slice: no query has a payload field ''"),
            (
                ["--protocol", "coco-6k"],
                "unknown protocol 'coco-6k' (did you mean 'coco-5k' or 'coco-1k'?); expected one of coco-5k",
            ),
            (["--protocol", "coco-5k", "--queries", "all"], "leave --queries and --gallery out"),
            (["--protocol", "coco-5k", "--gallery", "held-out"], "leave --queries and --gallery out"),
            (["--metric", "cosinus"], "unknown metric 'cosinus' (did you mean 'cosine'?); expected one of cosine, "),
            (["-n", "3"], "-n goes with --history; to search with fewer queries, give --sample"),
        ],
        ids=lambda each: " ".join(each)[:40] if isinstance(each, list) else "",
    )
    def test_options(self, untouched: Path, tmp_path: Path, options: Sequence[str], message: str) -> None:
        files = {f"--{name.partition('.')[0]}": tmp_path / name for name in ("report", "prometheus.prom", "jsonl")}
        ended = modalign(*ASK, *options, *(each for pair in files.items() for each in pair), "--home", untouched)
        assert message in ended.error
        assert ended.code == 2
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (["--pairs", "pairs"], "--pairs"),
            (["--require", "recall@1>1"], "--require"),
            (["--baseline", "last", "--k", "3"], "--baseline, --k"),
            (["--k", "1,5,10"], "--k"),
            (["--release", "live"], "--release"),
            (["--prometheus", "x.prom", "--jsonl", "x.jsonl"], "--jsonl, --prometheus"),
            (["--sample", "3", "--max-qps", "1", "--seed", "0"], "--max-qps, --sample, --seed"),
        ],
    )
    def test_a_history_makes_no_audit(self, untouched: Path, options: Sequence[str], named: str) -> None:
        ended = modalign("audit", "things", "--history", *options, "--home", untouched)
        assert ended.error == f"Error: --history makes no audit: leave {named} out"
        assert ended.code == 2

    def test_neither_pairs_nor_a_history(self, untouched: Path) -> None:
        ended = modalign("audit", "things", "--home", untouched)
        assert (ended.code, ended.error) == (2, "Error: expected --pairs SET, or --history")

    @pytest.mark.parametrize("option", ["--prometheus", "--jsonl"])
    def test_a_file_that_cannot_be_written_is_found_first(self, untouched: Path, tmp_path: Path, option: str) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "no" / "such.prom", tmp_path / "file" / "below.prom"):
            ended = modalign(*ASK, option, path, "--home", untouched)
            assert ended.code == 1
            assert ended.error.startswith(f"modalign: {path} cannot be written: ")
            assert ended.error.endswith("; name another file")
        assert modalign(*ASK, option, tmp_path, "--home", untouched).code == 2  # a directory
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


class TestWhatIsThere:
    """What is asked rightly of things that do not allow it: code 1, and no audit."""

    def test_pairs_whose_keys_are_not_in_the_collection(self, home: Path) -> None:
        regrouped(home, "others", {m: [f"other-{n}" for n in range(N)] for m in MODALITIES})
        before = audits(home)
        for scope in ("held-out", "all"):
            ended = modalign(
                "audit", "things", "--pairs", "others", "--gallery", scope, "--queries", "all", "--home", home
            )
            assert ended.code == 1
            assert f"no pair of embedding set others is in the {scope} gallery of release things.cosine" in ended.error
            assert ("--gallery all" in ended.error) == (scope == "held-out")
        assert audits(home) == before

    def test_one_direction_without_anything_to_find(self, home: Path) -> None:
        pushed = EmbeddingSet.open(home / "sets" / "pairs").load("text")
        groups = {"image": [f"other-{n}" for n in range(N)], "text": pushed.groups}
        regrouped(home, "half", groups)
        scopes = ("--queries", "all", "--gallery", "all")
        found = done("audit", "things", "--pairs", "half", *scopes, "--json", "--home", home).document
        assert found["without_relevant"] == {"text-to-image": 0, "image-to-text": N}
        recalls = {m["direction"]: m["value"] for m in found["measures"] if (m["part"], m["name"]) == ("", "recall@10")}
        assert recalls["image-to-text"] == 0.0 < recalls["text-to-image"]
        ended = done("audit", "things", "--pairs", "half", *scopes, "--home", home)
        assert f"image-to-text: counted as misses, with no relevant item in the gallery: {N} queries." in ended.out

    def test_one_group(self, home: Path) -> None:
        pushed = EmbeddingSet.open(home / "sets" / "pairs")
        parts = [pushed.load(modality).take([0]) for modality in MODALITIES]
        write_set(home / "sets" / "one", parts, pushed.card.encoders)
        scopes = ("--queries", "all", "--gallery", "all")
        found = done("audit", "things", "--pairs", "one", *scopes, "--json", "--home", home).document
        assert {m["queries"] for m in found["measures"] if m["name"] == "recall@1"} == {1}
        for measure in found["measures"]:
            if measure["low"] is not None:  # of one group there is nothing to draw
                assert measure["low"] == measure["value"] == measure["high"]
        assert any("modality gap was not measured" in sentence for sentence in found["says"])

    def test_a_k_larger_than_the_collection(self, home: Path) -> None:
        asked = ("--k", f"1,{10 * N}", "--require", f"recall@{10 * N}>=1", "--gallery", "all")
        found = done(*ASK, *asked, "--json", "--home", home).document
        assert found["verdict"] == "passed"
        its = {(m["name"], m["value"]) for m in found["measures"] if not m["part"] and m["name"].endswith(f"@{10 * N}")}
        assert {(f"recall@{10 * N}", 1.0), (f"chance.recall@{10 * N}", 1.0), (f"fidelity@{10 * N}", 1.0)} <= its

    def test_a_release_that_is_still_building(self, home: Path) -> None:
        database = Provenance.open(f"sqlite:///{home / 'modalign.db'}", home=home)
        with database as provenance, provenance.database.session() as session:
            row = session.scalars(select(ReleaseRow)).one()
            row.state, name = "building", row.physical_name
            session.commit()
        before = audits(home)
        for which, message in (
            ("live", f"it has {name} (building)"),
            (name, f"no {name} release of collection 'things'"),
        ):
            ended = modalign(*ASK, "--release", which, "--home", home)
            assert (ended.code, message in ended.error) == (1, True)
        assert audits(home) == before

    @pytest.mark.parametrize(
        ("collection", "pairs", "options", "message"),
        [
            ("nothing", "pairs", [], "no live release of collection 'nothing'"),
            ("things", "nothing", [], "is not an embedding set"),
            ("things", "pairs", ["--metric", "dot"], "no live release of collection 'things' under dot; it has cosine"),
            ("things", "pairs", ["--release", "ready"], "no ready release of collection 'things'"),
            ("things", "pairs", ["--release", "things.cosine"], "no finished release 'things.cosine' of collection"),
            ("things", "pairs", ["--protocol", "coco-5k"], "protocol coco-5k: expected 5000 images"),
        ],
    )
    def test_what_is_not_there(
        self, untouched: Path, collection: str, pairs: str, options: Sequence[str], message: str
    ) -> None:
        ended = modalign("audit", collection, "--pairs", pairs, *options, "--home", untouched)
        assert (ended.code, message in ended.error) == (1, True)

    def test_a_history_of_nothing(self, untouched: Path) -> None:
        ended = modalign("audit", "nothing", "--history", "--home", untouched)
        assert (ended.code, ended.error_code) == (1, "collection-not-found")


class TestFindings:
    """What is worth a sentence, and no failure."""

    @pytest.fixture
    def strict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that forbids exact search, as a server in strict mode may."""
        search = EdgeStore.search

        def refuse(self: EdgeStore, *arguments: Any, exact: bool = False, **options: Any) -> Any:
            if exact:
                raise ExactRefusedError("Forbidden: exact search is disabled by strict mode")
            return search(self, *arguments, **options)

        monkeypatch.setattr(EdgeStore, "search", refuse)

    @pytest.mark.slow
    @pytest.mark.usefixtures("strict")
    def test_a_server_that_forbids_exact_search(self, home: Path) -> None:
        ended = done(*ASK, "--filter", f"red={ON_CAPTION}", "--json", "--home", home)
        for direction in ("text-to-image", "image-to-text"):
            stages = [s for s in ended.document["stages"] if s["direction"] == direction]
            why = {s["stage"]: s["why_not"] for s in stages}
            assert "disabled by strict mode" in why["lowering"]
            assert why["reference"] is why["index"] is None
            indexes = [s for s in ended.document["stages"] if (s["direction"], s["stage"]) == (direction, "index")]
            assert [(index["kind"], index["against"]) for index in indexes] == [
                ("", "reference"),
                ("seen", "reference"),
            ]
        assert "strict mode" in " ".join(ended.document["says"])
        assert "lowering was not measured: " in done(*ASK, "--home", home).out

    @pytest.mark.usefixtures("strict")
    def test_a_strict_server_cannot_meet_what_it_does_not_measure(self, home: Path) -> None:
        ended = modalign(*ASK, "--require", "lowering:recall@10>=0", "--home", home)
        assert ended.code == 3
        assert ended.err.splitlines()[-1] == "not met: lowering:recall@10>=0: it was not measured in this audit"

    @pytest.mark.slow
    def test_a_filter_that_matches_nothing(self, home: Path) -> None:
        ended = done(*ASK, "--filter", f"none={NO_ITEM}", "--home", home)
        assert "text-to-image: filter:none was not measured: the filter matches no image." in ended.out
        assert "image-to-text: filter:none was not measured: the filter matches no text." in ended.out
        required = modalign(*ASK, "--filter", f"none={NO_ITEM}", "--require", "filter:none:recall@1>=0", "--home", home)
        assert required.code == 3
        assert "not met: filter:none:recall@1>=0: it was not measured in this audit" in required.err

    def test_a_filter_on_a_field_without_an_index(self, home: Path) -> None:
        said = done(*ASK, "--filter", f"red={ON_CAPTION}", "--json", "--home", home).document["says"]
        (sentence,) = [each for each in said if each.startswith("filter:red: ")]
        assert sentence == "filter:red: payload field caption is not indexed, so every filtered search reads payloads."

    def test_fields_whose_values_are_called_alike(self, home: Path) -> None:
        """What they are called is what SQL and requirements know them by."""
        pushed = EmbeddingSet.open(home / "sets" / "pairs")
        parts = [pushed.load(modality) for modality in MODALITIES]
        for part in parts:
            part.payloads[:] = ['{"a": "b=c", "a=b": "c"}'] * len(part)
        write_set(home / "sets" / "alike", parts, pushed.card.encoders)
        ask = ("audit", "things", "--pairs", "alike", "--slice", "a", "--home", home)
        assert done(*ask, "--slice", "a").code == 0
        ended = modalign(*ask, "--slice", "a=b")
        assert ended.code == 2
        assert "two parts of this audit would be called 'a=b=c'; audit one field or filter at a time" in ended.err

    @pytest.mark.parametrize("option", [("--slice", "f" * 101), ("--filter", f"{'f' * 101}={NO_ITEM}")])
    def test_names_without_an_end(self, untouched: Path, option: tuple[str, str]) -> None:
        ended = modalign(*ASK, *option, "--home", untouched)
        assert ended.code == 2
        assert "expected a name of at most 100 characters, got 101" in ended.err

    @pytest.mark.slow
    def test_a_sample_larger_than_the_set_is_all_of_it(self, home: Path) -> None:
        every = done(*ASK, "--json", "--home", home).document
        sampled = done(*ASK, "--sample", 10**9, "--json", "--home", home).document
        assert steady(sampled) == steady(every)
        few = done(*ASK, "--sample", 3, "--json", "--home", home).document
        whole = [m for m in few["measures"] if m["name"] == "recall@1" and not m["part"]]
        assert {m["queries"] for m in whole} == {3}

    @pytest.mark.slow
    def test_the_gap_is_of_the_same_groups_whatever_is_drawn_to_ask_with(self, home: Path) -> None:
        """Else it would move with the number of queries."""
        asked = (*ASK, "--queries", "all", "--json", "--home", home)
        every, few = (done(*asked, *sample).document["geometry"] for sample in ((), ("--sample", 3)))
        assert few == every
        assert few["groups"] == N


def steady(document: Any) -> list[Any]:
    """Measures but those of a clock."""
    return [m for m in document["measures"] if not m["name"].startswith("latency")]


class TestFiles:
    def test_one_file_for_two(self, untouched: Path, tmp_path: Path) -> None:
        one = tmp_path / "a.prom"
        ended = modalign(*ASK, "--report", one, "--prometheus", one, "--home", untouched)
        assert (ended.code, one.exists()) == (2, False)
        assert "write different files" in ended.err

    def test_what_the_collector_would_not_read(self, untouched: Path, tmp_path: Path) -> None:
        ended = modalign(*ASK, "--prometheus", tmp_path / "a.txt", "--home", untouched)
        assert ended.code == 2
        assert "expected a file that ends in .prom, as the collector does, got a.txt" in ended.err

    def test_a_name_that_is_no_unicode(self, untouched: Path) -> None:
        ended = modalign(*ASK, "--filter", "\udcff={}", "--home", untouched)
        assert (ended.code, "Traceback" in ended.err) == (2, False)
        assert "filter: expected a name of Unicode" in ended.err


class TestTheBaseline:
    """Of drops: what `last` is."""

    def against(self, home: Path, *asked: object) -> set[int]:
        ended = modalign(*ASK, "--queries", "all", "--baseline", "last", *asked, "--json", "--home", home)
        return {drift["against"] for drift in ended.document["drifts"]}

    @pytest.mark.slow
    def test_an_audit_that_asked_less_is_none_where_another_asked_all(self, home: Path) -> None:
        everything = (*ASK, "--queries", "all", "--json", "--home", home)
        whole = done(*everything).document["audit"]
        few = done(*everything, "--sample", 3).document["audit"]
        done(*everything, "--sample", 5, "--seed", 9)
        assert self.against(home) == {whole}
        assert self.against(home, "--sample", 2) == {few + 2}, "the newest that asked all of these"
        assert self.against(home, "--sample", 5, "--seed", 9) == {few + 2}, "what asked two is none"

    @pytest.mark.slow
    def test_an_audit_that_found_a_drop_is_none(self, home: Path) -> None:
        """Else the alarm would end itself the night after."""
        first = done(*ASK, "--queries", "all", "--json", "--home", home).document["audit"]
        texts = EmbeddingSet.open(home / "sets" / "pairs").load("text").groups
        labels = {"image": texts, "text": texts}
        regrouped(home, "labels", labels)
        ask = ("audit", "things", "--pairs", "labels", "--queries", "all", "--gallery", "all", "--json", "--home", home)
        first = done(*ask).document["audit"]
        wrong = [*texts[1:], texts[0]]
        regrouped(home, "pairs", {"image": wrong, "text": wrong})
        done("push", "pairs", "--into", "things", "--alignment", "a", "--home", home)
        for _ in range(2):
            ended = modalign(*ask, "--baseline", "last", "--require", "recall@1 drop<=0.02")
            assert ended.code == 3
            assert {drift["against"] for drift in ended.document["drifts"]} == {first}

    def test_that_few_queries_were_shared_is_said(self, home: Path) -> None:
        number = done(*ASK, "--queries", "all", "--sample", 3, "--json", "--home", home).document["audit"]
        ended = done(*ASK, "--queries", "all", "--baseline", number, "--json", "--home", home)
        (few,) = [says for says in ended.document["says"] if says.startswith(f"text-to-image: audit {number} ")]
        assert f"3 of these {N} queries" in few


class TestTheHistory:
    def test_a_store_that_another_process_has_open(self, home: Path) -> None:
        """It is in SQL alone."""
        with EdgeStore(home / "qdrant"):
            assert len(done("audit", "things", "--history", "--json", "--home", home).document) == 1

    def test_samples_and_seeds_stand_apart(self, home: Path) -> None:
        done(*ASK, "--sample", 3, "--seed", 7, "--home", home)
        document = done("audit", "things", "--history", "--json", "--home", home).document
        assert [each["asked"] for each in document] == [
            "pairs (queries held-out, gallery held-out)",
            "pairs (queries held-out, gallery held-out, sample 3, seed 7)",
        ]

    @pytest.mark.slow
    def test_each_audit_shows_its_recall_beside_its_gap(self, home: Path) -> None:
        """Whatever lengths it asked for, and under whatever metric."""
        done("push", "pairs", "--into", "things", "--alignment", "a", "--metric", "manhattan", "--home", home)
        everything = ("--queries", "all", "--home", home)
        done(*ASK, "--k", "1,5", *everything)
        done(*ASK, "--metric", "manhattan", *everything)
        told = done("audit", "things", "--history", "--home", home).out
        assert "audits under manhattan of pairs (queries all, gallery held-out)" in told
        assert "recall@5" in told
        document = done("audit", "things", "--history", "--json", "--home", home).document
        assert [each["metric"] for each in document] == ["cosine", "cosine", "manhattan"]


@pytest.mark.slow
def test_what_asked_about_seen_items_is_said(home: Path) -> None:
    """Paraphrases, or other captions and images: to people as to programs."""
    told = " ".join(done(*ASK, "--home", home).out.split())
    document = done(*ASK, "--json", "--home", home).document
    assert document["seen_unseen"]
    for direction, result in document["seen_unseen"].items():
        assert result["about"]["seen"].startswith(("paraphrases of the ", "other "))
        assert f"{direction}: queries about seen items are {result['about']['seen']}." in told


class TestCodes:
    def test_what_is_not_met_names_the_measure_its_value_and_interval(self, home: Path) -> None:
        ended = modalign(*ASK, *FEW, "--require", "text-to-image:recall@1>1", "--home", home)
        assert ended.code == 3
        (line,) = [line for line in ended.err.splitlines() if line.startswith("not met: ")]
        value = "text-to-image recall@1 is 1.0000 [1.0000, 1.0000], among held-out items alone"
        assert line == f"not met: text-to-image:recall@1>1: {value}"
        assert audits(home)[0][-1] == (2, "failed")

    @pytest.mark.slow
    def test_a_drop_names_the_measure_both_values_and_the_interval(self, home: Path) -> None:
        texts = EmbeddingSet.open(home / "sets" / "pairs").load("text").groups
        regrouped(home, "labels", dict.fromkeys(MODALITIES, texts))
        scopes = ("--queries", "all", "--gallery", "all")
        ask = ("audit", "things", "--pairs", "labels", *scopes, "--json", "--home", home)
        first = done(*ask).document["audit"]
        wrong = [*texts[1:], texts[0]]
        regrouped(home, "pairs", {"image": wrong, "text": wrong})  # the collection gets wrong labels
        done("push", "pairs", "--into", "things", "--alignment", "a", "--home", home)
        ended = modalign(*ask, "--baseline", "last", "--require", "recall@1 drop<=0.02")
        assert ended.code == 3, ended.err
        lines = [line for line in ended.err.splitlines() if line.startswith("not met: recall@1 drop<=0.02: ")]
        assert len(lines) == 2
        drifts = {d["direction"]: d for d in ended.document["drifts"] if (d["part"], d["measure"]) == ("", "recall@1")}
        for line, (direction, drift) in zip(lines, drifts.items(), strict=True):
            difference = drift["difference"]
            assert drift["after"] < drift["before"]
            became = f"was {drift['before']:.4f} in audit {first} and is {drift['after']:.4f}"
            by = f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
            assert line.endswith(f"{direction} recall@1 {became}: {by} over {N} queries, in the whole collection")
        assert [f["value"] for f in ended.document["not_met"]] == [-d["difference"]["value"] for d in drifts.values()]

    @pytest.mark.slow
    def test_no_drop_is_met(self, home: Path) -> None:
        ended = done(*ASK, "--baseline", "1", "--require", "recall@1 drop<=0", "--json", "--home", home)
        assert ended.document["verdict"] == "passed"
        assert {d["against"] for d in ended.document["drifts"]} == {1}

    @pytest.mark.parametrize("against", ["last", "live", "1"])
    @pytest.mark.parametrize("changed", [("--gallery", "all"), ("--queries", "all")])
    def test_an_audit_that_was_asked_otherwise(self, untouched: Path, against: str, changed: Sequence[str]) -> None:
        ended = modalign(*ASK, *changed, "--baseline", against, "--home", untouched)
        scope = {"queries": "held-out", "gallery": "held-out"} | {changed[0][2:]: changed[1]}
        assert ended.code == 2
        assert "pairs (queries held-out, gallery held-out)" in ended.error
        assert f"pairs (queries {scope['queries']}, gallery {scope['gallery']})" in ended.error
        assert "compared" in ended.error

    def test_an_audit_of_another_protocol(self, untouched: Path) -> None:
        ended = modalign(*ASK, "--protocol", "coco-1k", "--baseline", "1", "--home", untouched)
        assert ended.code == 2
        for value in ("audit 1", "pairs (queries held-out, gallery held-out)", "pairs (protocol coco-1k)"):
            assert value in ended.error

    def test_no_earlier_audit(self, home: Path) -> None:
        done("push", "pairs", "--into", "fresh", "--alignment", "a", "--home", home)
        asked = ("audit", "fresh", "--pairs", "pairs", "--home", home)
        for against in ("last", "live"):
            ended = modalign(*asked, "--baseline", against)
            assert ended.code == 2
            assert "has no earlier audit of pairs (queries held-out, gallery held-out); audit it once" in ended.error
        history = done("audit", "fresh", "--history", "--home", home)
        assert history.out == ""
        (command,) = re.findall("`modalign ([^`]+)`", history.err)
        assert command == "audit fresh --pairs pairs --require 'recall@10>=0.4'"
        assert done("audit", "fresh", "--history", "--json", "--home", home).document == []

    def test_a_broken_release(self, home: Path, tmp_path: Path) -> None:
        with EdgeStore(home / "qdrant") as store:
            (name,) = store.collections()
            page = next(iter(store.scroll(name)))
            store.delete(name, [record.id for record in page[:3]])
        files = [f"--{kind.partition('.')[0]}={tmp_path / kind}" for kind in ("report", "prometheus.prom", "jsonl")]
        ended = modalign(*ASK, "--require", "recall@1>=0", *files, "--json", "--home", home)
        assert (ended.code, ended.document["verdict"], ended.document["measures"]) == (3, "broken", [])
        assert ended.err.splitlines()[-1] == f"broken: {ended.document['broken']}"
        assert audits(home)[0][-1] == (2, "broken")
        assert json.loads((tmp_path / "jsonl").read_text())["verdict"] == "broken"
        assert 'verdict="broken"} 1.0' in (tmp_path / "prometheus.prom").read_text()
        refused = modalign(*ASK, "--baseline", "2", "--home", home)
        assert refused.error == "modalign: audit 2 found its release broken and measured nothing; name another"
