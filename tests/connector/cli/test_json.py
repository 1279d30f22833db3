"""JSON goes to stdout alone; everything else to stderr."""

from dataclasses import replace
from pathlib import Path

import pytest

from alignment.model.alignment import Alignment
from alignment.sets.embedding_set import EmbeddingSet
from connector.search.retriever import SearchHit
from tests.support.cli import COMMANDS, SPECS, N, done, modalign
from tests.support.fakes import write_manifest
from tests.support.world import write_set


class TestJson:
    """JSON goes to stdout alone; everything else to stderr."""

    def test_every_command_that_answers_has_it(self) -> None:
        without = {words for words, c in COMMANDS.items() if "as_json" not in {p.name for p in c.params}}
        assert without == {("db", "upgrade")}

    def test_upgrade_says_nothing_on_stdout(self, tmp_path: Path) -> None:
        ended = done("db", "upgrade", "--home", tmp_path)
        assert (ended.out, ended.err) == ("", f"sqlite:///{tmp_path}/modalign.db is up to date\n")

    def test_encode(self, home: Path, corpus: Path) -> None:
        document = done("encode", corpus, "--set", "again", *SPECS, "--json", "--home", home).document
        card = EmbeddingSet.open(home / "sets" / "again").card
        assert document == {
            "run": 4,
            "counts": {"encoded": 2 * N, "reused": 0, "no_longer_in_corpus": 0},
            "set": "again",
            "image": N,
            "text": N,
            "fingerprint": card.fingerprint,
        }

    def test_fit(self, home: Path) -> None:
        arguments = (
            "fit",
            "pairs",
            "--alignment",
            "b",
            "--method",
            "procrustes",
            "--metric",
            "dot",
            "--metric",
            "euclid",
        )
        document = done(*arguments, "--json", "--home", home).document
        made = Alignment.load(home / "alignments" / "b")
        assert document["fingerprint"] == made.fingerprint
        assert (document["alignment"], document["method"], document["dim"]) == ("b", "procrustes", made.dim)
        assert document["held_out_recall"] == made.card.held_out_recall
        assert list(document["held_out_recall"]) == ["dot", "euclid"]

    def test_fit_jointly(self, home: Path) -> None:
        arguments = ("fit", "pairs", "--alignment", "b", "--method", "ridge", "--metric", "cosine", "--metric", "js")
        options = ("--joint", "--training", "epochs=2", "--training", "loss=hinge", "--json", "--home", home)
        document = done(*arguments, *options).document
        card = Alignment.load(home / "alignments" / "b").card
        assert card.training["metrics"] == {"cosine": 0.5, "js(map=split)": 0.5}
        assert (card.training["epochs"], card.training["loss"]) == (2, "hinge")
        assert list(document["held_out_recall"]) == ["cosine", "js(map=split)"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("epochs", "expected NAME=VALUE, got 'epochs'"),
            ("epochs=x", "training: expected epochs to be a whole number, got 'x'"),
            ("speed=2", "training has no setting 'speed'"),
        ],
    )
    def test_a_setting_of_the_training_that_makes_no_sense(self, home: Path, given: str, message: str) -> None:
        refused = modalign("fit", "pairs", "--alignment", "b", "--training", given, "--home", home)
        assert message in refused.error
        assert refused.code == 2

    def test_push(self, home: Path) -> None:
        arguments = ("push", "pairs", "--into", "things", "--alignment", "a", "--metric", "cosine", "--metric", "dot")
        document = done(*arguments, "--json", "--home", home).document
        fingerprint = Alignment.load(home / "alignments" / "a").fingerprint[:8]
        assert document == {
            "run": 4,
            "counts": {"unchanged": 2 * N, "written": 2 * N},
            "releases": [
                {
                    "collection": "things",
                    "metric": metric,
                    "state": "live",
                    "points": 2 * N,
                    "physical_name": f"things.{metric}.{fingerprint}",
                    "hnsw_ef": None,
                    "hnsw_recall": None,
                }
                for metric in ("cosine", "dot")
            ],
        }

    def test_ingest(self, home: Path, corpus: Path) -> None:
        document = done("ingest", corpus, "--into", "new", "--alignment", "a", "--json", "--home", home).document
        assert document["counts"]["encoded"] == document["counts"]["written"] == 2 * N
        assert [(r["collection"], r["state"]) for r in document["releases"]] == [("new", "live")]
        assert EmbeddingSet.open(home / "sets" / "new").card.counts == {"image": N, "text": N}

    def test_search(self, shared: Path, corpus: Path) -> None:
        document = done("search", "things", "red lime", "-k", 3, "--json", "--home", shared).document
        assert (document["collection"], document["metric"], document["query"]) == ("things", "cosine", "red lime")
        assert len(document["found"]) == 3
        for item in document["found"]:
            assert set(item) == set(SearchHit._fields)
            assert (item["modality"], item["payload"]["key"]) == ("image", item["key"])
        picture = corpus.parent / "images" / "s0-00003.png"
        back = done("search", "things", picture, "-k", 2, "--json", "--home", shared).document
        assert {item["modality"] for item in back["found"]} == {"text"}
        same = done("search", "things", picture, "-k", 1, "--target", "image", "--json", "--home", shared).document
        assert [item["key"] for item in same["found"]] == ["s0-00003"]
        chosen = '{"must": [{"key": "key", "match": {"value": "s0-00007"}}]}'
        filtered = done("search", "things", "red", "--filter", chosen, "--exact", "--json", "--home", shared).document
        assert [item["key"] for item in filtered["found"]] == ["s0-00007"]

    def test_audit(self, shared: Path) -> None:
        arguments = ("audit", "things", "--pairs", "pairs", "--k", "1,5", "--require", "recall@5>=0.01")
        document = done(*arguments, "--json", "--home", shared).document
        assert (document["verdict"], document["not_met"], document["metric"]) == ("passed", [], "cosine")
        names = {(m["direction"], m["part"], m["name"]) for m in document["measures"]}
        assert {("text-to-image", "", "recall@5"), ("image-to-text", "index", "fidelity@5")} <= names
        assert len(names) == len(document["measures"])

    @pytest.mark.slow
    def test_an_infinite_median_is_null(self, home: Path) -> None:
        pushed = EmbeddingSet.open(home / "sets" / "pairs")
        parts = [pushed.load("image"), pushed.load("text")]
        few = set(list(dict.fromkeys(parts[0].groups))[-10:])
        strange = [replace(p, groups=[g if g in few else f"strange {g}" for g in p.groups]) for p in parts]
        write_set(home / "sets" / "strange", strange, pushed.card.encoders)
        arguments = ("audit", "things", "--pairs", "strange", "--queries", "all", "--gallery", "all")
        ended = modalign(*arguments, "--require", "median_rank<=1", "--json", "--home", home)
        assert ended.code == 3
        medians = [m["value"] for m in ended.document["measures"] if m["name"] == "median_rank"]
        assert medians == [None, None]
        assert [m["value"] for m in ended.document["not_met"]] == medians
        assert ended.document["without_relevant"] == {"text-to-image": N - 10, "image-to-text": N - 10}

    def test_status(self, shared: Path) -> None:
        document = done("status", "-n", 2, "--json", "--home", shared).document
        (release,) = document["releases"]
        assert (release["collection"], release["state"], release["points"]) == ("things", "live", 2 * N)
        assert release["store"] == "edge:qdrant"
        assert len(document["runs"]) == 2

    def test_rejects(self, home: Path, tmp_path: Path) -> None:
        assert done("rejects", "--json", "--home", home).document == {"run": None, "rejects": []}
        manifest = write_manifest(tmp_path / "m.jsonl", [], {"key": "a"}, {"key": "b", "caption": "red"})
        ended = modalign("encode", manifest, "--set", "s", *SPECS[2:], "--json", "--home", home)
        assert (ended.code, ended.document["counts"]["rejected"]) == (4, 1)
        run = ended.document["run"]
        document = done("rejects", "--json", "--home", home).document
        assert document == done("rejects", run, "--json", "--home", home).document
        (reject,) = document["rejects"]
        assert document["run"] == run
        assert (reject["reason"], reject["stage"], reject["key"]) == ("row-without-image-or-caption", "read", "a")
        assert (reject["source"], reject["position"]) == (str(manifest), 1)

    def test_tables_go_to_stdout_too(self, shared: Path) -> None:
        for arguments in (
            ("status",),
            ("rejects",),
            ("search", "things", "red"),
            ("audit", "things", "--pairs", "pairs"),
        ):
            assert done(*arguments, "--home", shared).out.strip()
