"""The command line: what it prints where, how it ends, and that no bad input breaks anything."""

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from alignment.metrics import MixtureOfLogits
from alignment.model.alignment import Alignment
from alignment.model.projections import Projection
from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from connector.cli import main as cli
from connector.errors import StoreUnavailableError
from connector.provenance.recorder import Provenance
from connector.stores import qdrant as qdrant_store
from connector.stores.contract import Points
from connector.stores.edge import EdgeStore
from tests.support.cli import SPECS, Ended, N, done, modalign
from tests.support.fakes import NAN_WORD, fake_pairs, write_manifest
from tests.support.world import cards, pairs, points_of, write_set

ROOT = Path(__file__).parents[3]
SECRET, KEY = "s3cret/pass", "k3y-of-the-server"


def state(home: Path) -> Any:
    found = done("search", "things", "red lime", "-k", 5, "--json", "--home", home).document
    status = done("status", "-n", 1000, "--json", "--home", home).document
    assert "running" not in {run["outcome"] for run in status["runs"]}
    sets = {path.name: EmbeddingSet.open(path).card for path in (home / "sets").iterdir() if path.is_dir()}
    return found, status["releases"], sets, sorted(p.name for p in (home / "alignments").iterdir())


@pytest.fixture(scope="module")
def sound(shared: Path) -> Any:
    """What the shared home holds."""
    return state(shared)


@pytest.fixture
def unbroken(shared: Path, sound: Any) -> Iterator[Path]:
    """The shared home, which must hold the same afterwards."""
    yield shared
    for extra in (shared / "sets").iterdir():  # sets that bad corpora left incomplete
        if extra.is_dir() and extra.name != "pairs":
            shutil.rmtree(extra)
    assert state(shared) == sound


def commands(group: click.Group = cli.cli, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Every command there is, by its words."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, (*prefix, name))
        else:
            found[*prefix, name] = command
    return found


COMMANDS = commands()


class TestHelp:
    @pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
    def test_every_command_and_option_has_a_help_text(self, words: tuple[str, ...]) -> None:
        result = CliRunner().invoke(cli.cli, [*words, "--help"])
        assert result.exit_code == 0
        assert len((COMMANDS[words].help or "").split()) > 3
        for option in COMMANDS[words].params:
            if isinstance(option, click.Option):
                assert option.help, option.name
                assert option.help.rstrip(" .]") + "." not in ("", "."), option.name

    @pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
    def test_every_command_stands_in_the_readme(self, words: tuple[str, ...]) -> None:
        assert f"modalign {' '.join(words)}" in (ROOT / "README.md").read_text(encoding="utf-8")

    def test_the_groups_help_names_every_command_and_exit_code(self) -> None:
        result = CliRunner().invoke(cli.cli, ["--help"])
        for words in COMMANDS:
            assert words[0] in result.output
        for code in ("0 done", "1 failed", "2 usage", "3 an audit's requirement", "4 done", "130 interrupted"):
            assert code in " ".join(result.output.split())

    @pytest.mark.parametrize("words", [("--help",), ("encode", "--help"), ("db", "upgrade", "--help"), ("--version",)])
    def test_help_loads_nothing_heavy(self, words: tuple[str, ...]) -> None:
        heavy = ["numpy", "torch", "sqlalchemy", "alembic", "pyarrow", "qdrant_client", "qdrant_edge", "scipy", "rich"]
        script = (
            "import sys; from connector.cli import main as cli\n"
            f"sys.argv = ['modalign', *{words!r}]\n"
            "try: cli.main()\n"
            f"except SystemExit as end: print([m for m in {heavy!r} if m in sys.modules], end.code, file=sys.stderr)\n"
        )
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert ended.stderr == "[] 0\n"


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
            ("epochs=x", "training: expected epochs to be int, got 'x'"),
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
            assert set(item) == {"key", "group", "modality", "score", "raw_score", "payload"}
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
        ended = modalign("encode", manifest, "--set", "s", *SPECS, "--json", "--home", home)
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


SERVED = ["chi2(map=split)", "js(map=split)", "mlp(hidden=4)", "dot+nnn(k=8,alpha=0.75)", "cosine"]


@pytest.fixture(scope="module")
def many(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with releases under metrics of every guarantee but `bounded`."""
    home = shutil.copytree(shared, tmp_path_factory.mktemp("many") / "home")
    options = [f"--metric={metric}" for metric in ("cosine", "mlp(hidden=4)", "dot+nnn(k=8)")]
    done("fit", "pairs", "--alignment", "m", "--method", "ridge", *options, "--home", home)
    asked = [f"--metric={metric}" for metric in ("chi2(map=split)", "js", "mlp(hidden=4)", "dot+nnn(k=8)", "cosine")]
    pushed = done("push", "pairs", "--into", "many", "--alignment", "m", *asked, "--json", "--home", home).document
    assert [release["metric"] for release in pushed["releases"]] == SERVED
    assert {(release["state"], release["points"]) for release in pushed["releases"]} == {("live", 2 * N)}
    assert pushed["counts"] == {"written": 2 * N * len(SERVED)}
    return home


def releases(home: Path) -> dict[str, str]:
    """The release of each alignment under cosine, by the alignment's name."""
    paths = sorted((home / "alignments").iterdir())
    return {path.name: f"things.cosine.{Alignment.load(path).fingerprint[:8]}" for path in paths}


@pytest.fixture(scope="module")
def beside(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a shadow of another alignment beside the live release."""
    home = shutil.copytree(shared, tmp_path_factory.mktemp("beside") / "home")
    done("fit", "pairs", "--alignment", "b", "--method", "procrustes", "--home", home)
    ended = done("push", "pairs", "--into", "things", "--alignment", "b", "--home", home)
    name = releases(home)["b"]
    assert ended.err.splitlines()[-1] == (
        f"{name} is ready beside what is live of things under cosine: run `modalign audit things --release {name} "
        "--pairs SET --require CONDITION`, then `modalign promote things`"
    )
    return home


class TestReleases:
    """From a shadow to a live release and back, as whoever is on call does it."""

    @pytest.fixture
    def home(self, beside: Path, tmp_path: Path) -> Path:
        return shutil.copytree(beside, tmp_path / "home")

    def states(self, home: Path) -> dict[str, tuple[str, str]]:
        document = done("status", "--json", "--home", home).document
        return {release["physical_name"]: (release["state"], release["pending"]) for release in document["releases"]}

    def audit(self, home: Path, requirement: str = "recall@10>0", release: str = "ready") -> Ended:
        options = ("--pairs", "pairs", "--release", release, "--require", requirement, "--json", "--home", home)
        return modalign("audit", "things", *options)

    def test_audit_promote_rollback_drop(self, home: Path) -> None:
        old, new = releases(home).values()
        assert self.states(home) == {
            old: ("live", ""),
            new: (
                "ready",
                f"a shadow: run `modalign audit things --release {new}`, then `modalign promote things`",
            ),
        }
        refused = modalign("promote", "things", "--home", home)
        assert (refused.code, refused.out) == (3, "")
        assert refused.err.startswith(f"modalign: release {new} was never audited; audit with `modalign audit ")
        assert self.audit(home, "recall@1>1").code == 3
        refused = modalign("promote", "things", "--home", home)
        assert (refused.code, "has failed: recall@1>1" in refused.err) == (3, True)
        assert self.audit(home).document["collection"] == new
        switched = done("promote", "things", "--json", "--home", home).document["switched"]
        (line,) = switched
        assert (line["live"], line["before"], line["forced_by"]) == (new, old, None)
        assert line["audit"] is not None
        assert self.states(home) == {old: ("retired", ""), new: ("live", "")}
        again = done("promote", "things", "--home", home)
        assert "everything that was asked for is live already" in again.out
        assert done("rollback", "things", "--json", "--home", home).document["switched"][0]["live"] == old
        assert self.states(home) == {old: ("live", ""), new: ("retired", "")}
        ended = modalign("drop", "things", "--retired", "--home", home)
        assert (ended.code, "modalign drop deletes only what somebody agrees to: add --yes" in ended.err) == (2, True)
        document = done("drop", "things", "--retired", "--yes", "--json", "--home", home).document
        assert document["dropped"] == [new]
        assert self.states(home) == {old: ("live", "")}
        assert done("drop", "things", "--retired", "--json", "--home", home).document == {"run": None, "dropped": []}
        commands = [run["command"] for run in done("status", "--json", "--home", home).document["runs"]]
        assert commands[:6] == ["drop", "rollback", "promote", "promote", "audit", "promote"]

    def test_who_forces_says_why(self, home: Path) -> None:
        for options in (("--force",), ("--reason", "it burns"), ("--force", "--reason", " ")):
            ended = modalign("promote", "things", *options, "--home", home)
            assert (ended.code, "expected --force together with --reason TEXT" in ended.err) == (2, True)
        ended = done("promote", "things", "--force", "--reason", "it burns", "--json", "--home", home)
        (switched,) = ended.document["switched"]
        person = switched["forced_by"]
        assert re.fullmatch(r"[^@]+@.+", person)
        assert f"forced by {person}: release {releases(home)['b']} was never audited" in ended.err
        with Provenance.open(f"sqlite:///{home / 'modalign.db'}") as provenance:
            (promotion,) = provenance.releases.promotions()
        assert (promotion.forced_by, promotion.reason) == (person, "it burns")

    def test_the_live_one_is_not_dropped(self, home: Path) -> None:
        ended = modalign("drop", "things", "--release", releases(home)["a"], "--yes", "--home", home)
        assert "is live: things.cosine names it" in ended.error

    @pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
    def test_dropping_asks(self, home: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
        terminal = StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", terminal)
        shadow = releases(home)["b"]
        ended = modalign("drop", "things", "--release", shadow, "--home", home)
        assert (ended.code, "drop 1 releases of things?" in ended.err) == (code, True)
        assert (shadow in self.states(home)) == bool(code)

    def test_verify_and_repair(self, home: Path) -> None:
        names = releases(home)
        document = done("status", "things", "--verify", "--json", "--home", home).document
        assert {each["release"]: each["sound"] for each in document["verified"]} == dict.fromkeys(names.values(), True)
        with EdgeStore(home / "qdrant") as store:
            gone = next(record for page in store.scroll(names["b"]) for record in page)
            vector = np.ones((1, store.describe(names["a"]).vectors["image"].dim), np.float32)
            store.delete(names["b"], [gone.id])
            store.upsert(names["a"], Points("image", points_of(1), vector, [{}]))
        ended = modalign("status", "--verify", "--json", "--home", home)
        found = {each["release"]: (each["missing"], each["orphans"]) for each in ended.document["verified"]}
        assert (ended.code, found) == (1, {names["a"]: (0, 1), names["b"]: (1, 0)})
        assert ended.document["examples"] == {
            names["a"]: {"orphans": points_of(1)},
            names["b"]: {"missing": [f"{gone.payload['modality']}:{gone.payload['key']}"]},
        }
        shown = modalign("status", "things", "--verify", "--home", home)
        assert (shown.code, f"{names['a']}: orphans, for example {points_of(1)[0]}" in shown.err) == (1, True)
        ended = modalign("status", "things", "--repair", "--home", home)
        assert (ended.code, "--repair deletes only what somebody agrees to: add --yes" in ended.err) == (2, True)
        done("status", "things", "--repair", "--yes", "--home", home)
        assert done("status", "--verify", "--json", "--home", home).document["examples"] == {}

    def test_what_is_broken_keeps_nobody_from_verifying_and_mending_the_others(self, home: Path) -> None:
        names = releases(home)
        with EdgeStore(home / "qdrant") as store:
            gone = next(record for page in store.scroll(names["b"]) for record in page)
            store.delete(names["b"], [gone.id])
        (home / "alignments" / "a").rename(home / "elsewhere")
        ended = modalign("status", "--verify", "--json", "--home", home)
        first, second = ended.document["verified"]
        assert (ended.code, first["release"], first["sound"], first["points"]) == (1, names["a"], False, None)
        assert str(home / "alignments" / "a") in first["broken"]
        assert (second["release"], second["missing"], second["broken"]) == (names["b"], 1, None)
        shown = modalign("status", "--verify", "--home", home)
        assert (shown.code, f"{names['a']}: broken: {first['broken']}" in shown.out) == (1, True)
        assert f"{names['b']}: missing, for example" in shown.err
        ended = modalign("status", "--repair", "--yes", "--json", "--home", home)
        assert (ended.code, [row["sound"] for row in ended.document["verified"]]) == (1, [False, True])
        (home / "elsewhere").rename(home / "alignments" / "a")
        (home / "sets" / "pairs").rename(home / "elsewhere")
        ended = modalign("status", "--verify", "--json", "--home", home)
        assert ended.code == 1
        assert all(str(home / "sets" / "pairs") in row["broken"] for row in ended.document["verified"])
        (home / "elsewhere").rename(home / "sets" / "pairs")
        assert [row["broken"] for row in done("status", "--verify", "--json", "--home", home).document["verified"]] == [
            None,
            None,
        ]

    def test_a_store_that_does_not_answer_is_no_release_that_is_broken(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def describe(*_: object) -> None:
            raise StoreUnavailableError("not now")

        monkeypatch.setattr(EdgeStore, "describe", describe)
        assert modalign("status", "--verify", "--home", home).error == "modalign: not now"

    def test_verifying_what_is_not_there(self, home: Path) -> None:
        ended = modalign("status", "nothing", "--verify", "--home", home)
        assert "no release of collection 'nothing' in the store edge:qdrant" in ended.error


class TestMetrics:
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
        assert [set(item) for item in document["found"]] == [
            {"key", "group", "modality", "score", "raw_score", "payload"}
        ] * 3
        assert not any("aligned" in item["payload"] for item in document["found"])
        assert document["exact"] is False
        assert done(*arguments, "--exact", "--json").document["exact"] is True
        for options, words in (((), "along the graph, --exact would prove it"), (("--exact",), "is there")):
            title = done(*arguments, *options).out.splitlines()[0]
            along = " order, found along the graph: --exact compares with everything"
            proof = f": nothing better {words}, 60 candidates rescored" if certified else "" if options else along
            assert title == f"many under {printed}, {guarantee}{proof}"

    def test_candidates_are_an_option(self, many: Path) -> None:
        arguments = ("search", "many", "red lime", "-k", 3, "--candidates", 5, "--home", many)
        for metric, certified, proof in (
            ("chi2", False, ": not proved within the candidate budget"),
            ("mlp(hidden=4)", None, ""),
        ):
            document = done(*arguments, "--metric", metric, "--json").document
            assert (document["certified"], document["candidates"], len(document["found"])) == (certified, 5, 3)
            title = done(*arguments, "--metric", metric).out.splitlines()[0]
            assert title.endswith(f"{proof}, 5 candidates rescored")
        for metric in SERVED:
            ended = modalign(*arguments, "--metric", metric, "-k", 6)
            assert "expected a candidate budget of at least k, 6, got 5; raise it or lower k" in ended.error

    def test_the_page_says_it_too(self, many: Path, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        done("search", "many", "red lime", "-k", 3, "--metric", "js", "--html", page, "--home", many)
        assert "3 best under js(map=split), certified: nothing better along the graph" in page.read_text(
            encoding="utf-8"
        )

    def test_a_certificate_is_audited_and_can_be_required(self, many: Path) -> None:
        arguments = ("audit", "many", "--pairs", "pairs", "--require", "certified>=0.99", "--json", "--home", many)
        for metric in ("chi2", "js"):
            document = done(*arguments, "--metric", metric).document
            found = [measure for measure in document["measures"] if measure["name"] == "certified"]
            assert [(m["value"], m["low"], m["high"]) for m in found] == [(1.0, 1.0, 1.0)] * 2
            assert document["metric"] == f"{metric}(map=split)"
        for metric in ("mlp(hidden=4)", "cosine", "dot+nnn(k=8)"):
            ended = modalign(*arguments, "--metric", metric)
            assert (ended.code, "names no measure of this audit" in ended.error) == (2, True)
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

    def test_the_remedy_that_is_named_works(self, home: Path) -> None:
        error = modalign("push", "pairs", "--into", "new", "--alignment", "a", "--metric", "mlp", "--home", home).error
        match = re.search(r"`modalign fit --metric '([^']*)'`", error)
        assert match
        arguments = ("--alignment", "b", "--metric", match[1], "--home", home)
        done("fit", "pairs", "--method", "ridge", *arguments)
        done("push", "pairs", "--into", "new", *arguments)

    def test_a_set_that_was_encoded_with_a_reserved_column(self, home: Path, tmp_path: Path) -> None:
        rows = [{"key": "a", "caption": "red", "aligned": "x"}, {"key": "b", "caption": "lime"}]
        manifest = write_manifest(tmp_path / "m.jsonl", [], *rows)
        ended = modalign("ingest", manifest, "--into", "new", "--alignment", "a", "--json", "--home", home)
        assert (ended.code, ended.document["counts"]["written"]) == (4, 1)
        (reject,) = done("rejects", "--json", "--home", home).document["rejects"]
        assert (reject["reason"], reject["key"], reject["detail"]) == (
            "payload-name-reserved",
            "a",
            "rename the columns aligned",
        )


class TestExitCodes:
    """Through a process of their own, because that is what scripts see."""

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.support.launcher", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    def test_done_and_usage(self, shared: Path) -> None:
        assert self.run("status", "--home", shared).returncode == 0
        ended = self.run("search", "things", "--home", shared)
        assert (ended.returncode, "Missing argument 'QUERY'" in ended.stderr) == (2, True)
        ended = self.run("search", "things", "red", "--metric", "hamming", "--home", shared)
        assert (ended.returncode, ended.stderr.startswith("modalign: unknown metric 'hamming'")) == (2, True)

    def test_failed(self, shared: Path) -> None:
        ended = self.run("search", "nothing", "red", "--home", shared)
        assert ended.returncode == 1
        assert ended.stderr.startswith("modalign: no live release of collection 'nothing'")
        assert ended.stderr.count("\n") == 1

    def test_a_requirement_that_is_not_met(self, shared: Path) -> None:
        ended = self.run("audit", "things", "--pairs", "pairs", "--require", "recall@1>1", "--home", shared)
        assert ended.returncode == 3
        assert "not met: recall@1>1: text-to-image recall@1 is " in ended.stderr

    def test_interrupted(self, home: Path, corpus: Path) -> None:
        arguments = ("ingest", corpus, "--into", "new", "--alignment", "a", "--home", home)
        ended = self.run("--signal", "SIGINT", "--before", "upsert:3", *arguments)
        assert ended.returncode == 130
        assert ended.stderr.splitlines()[-1].startswith("interrupted; nothing is half written")
        assert "Traceback" not in ended.stderr
        (run,) = done("status", "-n", 1, "--json", "--home", home).document["runs"]
        assert (run["outcome"], run["command"]) == ("interrupted", "ingest")
        assert done(*arguments).code == 0

    def test_a_reader_that_leaves(self, shared: Path) -> None:
        """`modalign status | head -1` is no crash."""
        command = [
            sys.executable,
            "-m",
            "tests.support.launcher",
            "status",
            "-n",
            "100",
            "--json",
            "--home",
            str(shared),
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert "Traceback" not in process.stderr.read()
        assert process.returncode in (1, -signal.SIGPIPE)

    def test_rejected(self, shared: Path, tmp_path: Path) -> None:
        manifest = write_manifest(tmp_path / "m.jsonl", fake_pairs(tmp_path, 3), {"key": "bad"}, {"caption": "keyless"})
        home = tmp_path / "home"
        done("db", "upgrade", "--home", home)
        for allowed, code in ((0, 4), (1, 4), (2, 0)):
            arguments = ("encode", manifest, "--set", "s", *SPECS, "--max-rejects", allowed, "--home", home)
            ended = modalign(*arguments)
            assert (ended.code, "2 rejected; see `modalign rejects " in ended.err) == (code, True)


class TestBadCorpora:
    """Rows and files that cannot be used are named rejects; the rest is encoded."""

    def rejected(self, home: Path, manifest: Path) -> list[tuple[str, str | None]]:
        ended = modalign("encode", manifest, "--set", "bad", *SPECS, "--json", "--home", home)
        assert ended.code == 4, ended.err
        assert (
            ended.err.splitlines()[-1]
            == f"{ended.document['counts']['rejected']} rejected; see `modalign rejects {ended.document['run']}`"
        )
        found = done("rejects", ended.document["run"], "--json", "--home", home).document["rejects"]
        assert EmbeddingSet.open(home / "sets" / "bad").card.counts["image"] >= 3
        return [(reject["reason"], reject["key"]) for reject in found]

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"key": "x"}, "row-without-image-or-caption"),
            ({"key": "x", "image": "", "caption": " "}, "row-without-image-or-caption"),
            ({"caption": "red"}, "key-missing"),
            ({"key": "s1-00001", "caption": "red"}, "key-duplicate"),
            ({"key": "x", "image": "images/none.png"}, "image-missing"),
            ({"key": "x", "image": "images"}, "image-not-a-file"),
            ({"key": "x", "image": "text.png"}, "image-unidentified"),
            ({"key": "x", "image": "truncated.png"}, "image-broken"),
            ({"key": "x", "image": "empty.png"}, "image-empty"),
            ({"key": "x", "image": "black.png"}, "vector-zero"),
            ({"key": "x", "image": "thread.png"}, "image-too-elongated"),
            ({"key": "x", "caption": f"a {NAN_WORD}"}, "vector-not-finite"),
            ({"key": "x", "caption": 3}, "caption-not-text"),
            ({"key": "x", "caption": "red", "year": float("nan")}, "payload-not-json"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_one_bad_row(self, unbroken: Path, tmp_path: Path, row: dict[str, Any], reason: str) -> None:
        manifest = write_manifest(tmp_path / "m.jsonl", [*fake_pairs(tmp_path, 4, seed=1)], row)
        (tmp_path / "text.png").write_text("no picture")
        (tmp_path / "empty.png").touch()
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "whole.png")
        (tmp_path / "truncated.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
        Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
        Image.new("RGB", (257, 1), "red").save(tmp_path / "thread.png")
        ((found, key),) = self.rejected(unbroken, manifest)
        assert found == reason
        assert key is None or key.startswith(str(row.get("key")))

    def test_ingest_takes_them_the_same_way(self, home: Path, tmp_path: Path) -> None:
        manifest = write_manifest(
            tmp_path / "m.jsonl", fake_pairs(tmp_path, 4, seed=1), {"key": "x", "image": "none.png"}
        )
        arguments = ("ingest", manifest, "--into", "new", "--alignment", "a", "--json", "--home", home)
        ended = modalign(*arguments)
        assert (ended.code, ended.document["counts"]["rejected"], ended.document["counts"]["written"]) == (4, 1, 8)
        assert modalign(*arguments, "--max-rejects", 1).code == 0

    def test_ingest_reads_the_texts_of_a_csv_as_the_kinds_of_their_indexes(self, home: Path, tmp_path: Path) -> None:
        lines = ["red,1999,0.5,true", "lime,2007,1e2,false", "navy,MMXX,1,true", "blue,2020,,no", "green,2021,7,true"]
        records = [f"k{number},{line}\n" for number, line in enumerate(lines)]
        (tmp_path / "m.csv").write_text("key,caption,year,price,sold\n" + "".join(records))
        indexes = [f"--payload-index={name}" for name in ("year=integer", "price=float", "sold=bool")]
        arguments = ("ingest", tmp_path / "m.csv", "--into", "new", "--alignment", "a", "--json", "--home", home)
        ended = modalign(*arguments, *indexes)
        assert (ended.code, ended.document["counts"]["rejected"], ended.document["counts"]["written"]) == (4, 2, 3)
        refused = done("rejects", ended.document["run"], "--json", "--home", home).document["rejects"]
        assert [(reject["reason"], reject["key"], reject["detail"]) for reject in refused] == [
            ("payload-not-integer", "k2#0", "year is indexed as integer, got the text 'MMXX'"),
            ("payload-not-bool", "k3#0", "sold is indexed as bool, got the text 'no'"),
        ]
        for condition, expected in (
            ('{"key": "year", "range": {"gte": 2000}}', {"k1#0": 2007, "k4#0": 2021}),
            ('{"key": "price", "range": {"lt": 50}}', {"k0#0": 1999, "k4#0": 2021}),
            ('{"key": "sold", "match": {"value": false}}', {"k1#0": 2007}),
        ):
            options = ("--target", "text", "--filter", f'{{"must": [{condition}]}}', "--json", "--home", home)
            found = done("search", "new", "red", *options).document["found"]
            assert {item["key"]: item["payload"]["year"] for item in found} == expected

    def test_bad_vectors_of_a_set_are_rejected_by_push(self, home: Path) -> None:
        image, text = pairs(10)
        image.vectors[2], text.vectors[5] = np.nan, 0.0
        write_set(home / "sets" / "made", [image, text])
        arguments = ("push", "made", "--into", "new", "--alignment", "a", "--json", "--home", home)
        for _ in range(2):
            ended = modalign(*arguments)
            assert (ended.code, ended.document["counts"]["rejected"]) == (4, 2)
            found = done("rejects", "--json", "--home", home).document["rejects"]
            assert [(r["modality"], r["key"], r["reason"]) for r in found] == [
                ("image", "2", "vector-not-finite"),
                ("text", "5", "vector-zero"),
            ]
            assert [r["points"] for r in ended.document["releases"]] == [18]
        refused = modalign("fit", "made", "--alignment", "b", "--home", home)
        assert "1 image vectors cannot be used, the first is key '2': vector-not-finite" in refused.error


class TestFormats:
    """Corpora that are no manifest, and vectors."""

    def archive(self, directory: Path, count: int) -> Path:
        path = directory / "shard-00.tar"
        with tarfile.open(path, "w") as tar:
            for pair in fake_pairs(directory, count, seed=2):
                tar.add(pair.image, f"{pair.key}.png")
                (directory / "caption").write_text(pair.captions[0])
                tar.add(directory / "caption", f"{pair.key}.txt")
            tar.add(pair.image, "../outside.png")
        return path

    def test_an_archive_is_encoded_and_ingested(self, home: Path, tmp_path: Path) -> None:
        self.archive(tmp_path, 5)
        pattern = tmp_path / "shard-{00..00}.tar"
        ended = modalign("encode", pattern, "--set", "tar", *SPECS, "--json", "--home", home)
        assert (ended.code, ended.document["counts"]["encoded"], ended.document["image"]) == (4, 10, 5)
        (refused,) = done("rejects", "--json", "--home", home).document["rejects"]
        assert (refused["reason"], refused["source"]) == ("member-unsafe-name", str(tmp_path / "shard-00.tar"))
        options = ("--set", "tar", "--into", "new", "--alignment", "a", "--format", "webdataset", "--json")
        ended = modalign("ingest", tmp_path / "shard-00.tar", *options, "--max-rejects", 1, "--home", home)
        assert (ended.code, ended.document["counts"]["unchanged"], ended.document["counts"]["written"]) == (0, 10, 10)

    def test_annotations_with_their_images_elsewhere(self, home: Path, tmp_path: Path) -> None:
        pairs = fake_pairs(tmp_path / "far", 4, seed=3)
        lines = [f"{pair.image.name}#0\t{pair.captions[0]}\n" for pair in pairs]
        (tmp_path / "x.token").write_text("".join(lines) + "gone.png#0\tred\n")
        arguments = ("encode", tmp_path / "x.token", "--set", "token", *SPECS, "--json", "--home", home)
        assert "name their folder with --images" in modalign(*arguments).error
        ended = modalign(*arguments, "--images", tmp_path / "far")
        assert (ended.code, ended.document["image"], ended.document["text"]) == (4, 4, 5)
        (refused,) = done("rejects", "--json", "--home", home).document["rejects"]
        assert (refused["reason"], refused["key"]) == ("image-missing", "gone.png")

    def test_vectors_are_imported(self, home: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", np.array([[1.0, 2], [0, 0], [3, 4]], np.float16))
        pq.write_table(pa.table({"key": ["a", "b", "c"]}), tmp_path / "v.parquet")
        arguments = ("import", tmp_path / "v.npy", "--set", "v", "--image-encoder", "mine", "--json", "--home", home)
        ended = modalign(*arguments)
        assert (ended.code, ended.document["counts"]["imported"], ended.document["image"]) == (4, 2, 2)
        assert modalign(*arguments, "--max-rejects", 1).document["counts"]["unchanged"] == 2
        (refused,) = done("rejects", "--json", "--home", home).document["rejects"]
        assert (refused["reason"], refused["key"], refused["position"]) == ("vector-zero", "b", 2)
        assert EmbeddingSet.open(home / "sets" / "v").card.encoders["image"].spec == "imported:mine"


def empty_manifest(directory: Path) -> list[object]:
    (directory / "m.jsonl").touch()
    return ["encode", directory / "m.jsonl", "--set", "bad", *SPECS]


def empty_folder(directory: Path) -> list[object]:
    (directory / "pictures").mkdir()
    return ["encode", directory / "pictures", "--set", "bad", *SPECS]


def headless_csv(directory: Path) -> list[object]:
    (directory / "m.csv").write_text("a,b\n1,2\n")
    return ["encode", directory / "m.csv", "--set", "bad", *SPECS]


BAD: list[tuple[str, str | Callable[[Path], Sequence[object]], str]] = [
    ("empty manifest", empty_manifest, r"corpus .*m\.jsonl is empty"),
    ("empty folder", empty_folder, r"corpus .*pictures is empty"),
    ("manifest without columns", headless_csv, "expected the columns key and image or caption"),
    ("no corpus", "encode /no/such/corpus.jsonl --set bad --text-encoder fake-text:small", "does not exist"),
    ("corpus of no kind", f"encode {__file__} --set bad --text-encoder fake-text:small", r"got \.py"),
    ("unknown format", "encode {corpus} --set bad --text-encoder fake-text:small --format xml", "unknown format 'xml'"),
    ("images of a manifest", "ingest {corpus} --into bad --alignment a --images x", "says itself where its images are"),
    ("vectors that are none", "import {corpus} --set bad --text-encoder mine", r"expected a \.npy, a \.parquet"),
    ("no vectors", "import /no/such.npy --set bad --text-encoder mine", "do not exist"),
    ("vectors of nobody", "import {corpus} --set bad", "expected --image-encoder, --text-encoder or both, got neither"),
    ("an imported encoder to load", "encode {corpus} --set bad --text-encoder imported:x", "no model that can be"),
    ("no encoder", "encode {corpus} --set bad", "expected --image-encoder, --text-encoder or both, got neither"),
    ("unknown scheme", "encode {corpus} --set bad --text-encoder fake:1", "unknown encoder 'fake:1'; expected"),
    ("encoder without a name", "encode {corpus} --set bad --text-encoder fake-text", "expected SCHEME:NAME"),
    ("encoder of the other modality", "encode {corpus} --set bad --text-encoder fake-image:small", "encodes image"),
    ("another encoder into a set", "encode {corpus} --set pairs --text-encoder fake-text:other", "cannot be mixed"),
    ("another type into a set", "encode {corpus} --set pairs --text-encoder fake-text:small --dtype float16", "32"),
    ("no such device", "encode {corpus} --set bad --text-encoder fake-text:small --device tpu", "tpu"),
    ("no such set to fit", "fit nothing --alignment bad", "is not an embedding set: it has no card.json"),
    ("unknown method", "fit pairs --alignment bad --method magic", "unknown method 'magic'; expected auto or one of"),
    ("unknown metric to fit", "fit pairs --alignment bad --metric hamming", "unknown metric 'hamming'"),
    ("alignment that exists", "fit pairs --alignment a", "alignment a exists at"),
    ("too many folds", "fit pairs --alignment bad --folds 1000", "needs at least 2000 groups"),
    ("no such set to push", "push nothing --into bad --alignment a", "is not an embedding set"),
    ("no such alignment", "push pairs --into bad --alignment nothing", "is not an alignment"),
    ("unknown metric to push", "push pairs --into bad --alignment a --metric hamming", "unknown metric 'hamming'"),
    (
        "metric that was not fitted",
        "push pairs --into bad --alignment a --metric mlp",
        r"holds no parameters for metric mlp\(hidden=64\); fit one with `modalign fit --metric 'mlp\(hidden=64\)'`",
    ),
    (
        "one of several that was not fitted",
        "push pairs --into bad --alignment a --metric cosine --metric dot+nnn",
        r"holds no parameters for metric dot\+nnn\(k=128,alpha=0\.75\); fit one with",
    ),
    (
        "metric that was not fitted to ingest",
        "ingest {corpus} --into bad --alignment a --metric cosine --metric mol",
        r"holds no parameters for metric mol\(components=4,size=64,sway=0\.1\); fit one with",
    ),
    ("metric with an unknown map", "push pairs --into bad --alignment a --metric chi2(map=cube)", "expected map to be"),
    ("metric with an unknown parameter", "search things red --metric chi2(size=3)", "no parameter 'size'; it has map"),
    ("correction of what is no product", "fit pairs --alignment bad --metric chi2+nnn", "lowers exactly to Dot"),
    ("correction by too many", "fit pairs --alignment bad --metric dot+nnn", "at least 128 training vectors of each"),
    ("metric that was not pushed", "search things red --metric mlp", r"under mlp\(hidden=64\); it has cosine"),
    ("metric that was not pushed to audit", "audit things --pairs pairs --metric mol", r"no live .* under mol\("),
    ("budget below k", "search things red --candidates 9", "candidate budget of at least k, 10, got 9"),
    ("no such corpus to ingest", "ingest /no/such.jsonl --into bad --alignment a", "does not exist"),
    ("no alignment to ingest with", "ingest {corpus} --into bad --alignment nothing", "is not an alignment"),
    ("unknown collection", "search nothing red", "'nothing'; this store has things"),
    ("unknown metric", "search things red --metric hamming", "unknown metric 'hamming'"),
    ("metric without a release", "search things red --metric dot", "under dot; it has cosine"),
    ("filter that is no JSON", "search things red --filter {{", "filter is no JSON"),
    ("filter that is none", 'search things red --filter {{"must":[{{"foo":1}}]}}', "filter is not valid at must"),
    ("filter that is a list", "search things red --filter [1]", "filter is not valid"),
    ("filter of no length", "search things red --filter ", "filter is no JSON"),
    ("filter that asks for nothing", 'search things red --filter {{"must":{{"key":"a"}}}}', "asks for nothing"),
    ("query of no length", "search things ", "expected a text of Unicode to search for, got ''"),
    ("query of nothing but a space", "search things \t", r"expected a text of Unicode to search for, got '\\t'"),
    ("picture that is missing", "search things no-such.png", r"no-such\.png cannot be used \(image-missing\)"),
    ("query that is not a number", f"search things {NAN_WORD}", "vector-not-finite"),
    ("unknown collection to audit", "audit nothing --pairs pairs", "no live release"),
    ("no pairs", "audit things --pairs nothing", "is not an embedding set"),
    ("requirement that cannot be read", "audit things --pairs pairs --require recall", "expected MEASURE>=NUMBER"),
    ("requirement on nothing", "audit things --pairs pairs --require recall@7>=1", "names no measure"),
    ("requirement on a proof of what is exact", "audit things --pairs pairs --require certified>=0.9", "no measure"),
    ("list of no length", "audit things --pairs pairs --k 0", "expected every k in the range 1 to 10000"),
    ("store of no kind", "search things red --qdrant-url ftp://host", "expected edge:DIRECTORY, http"),
    ("database of no kind", "status --database-url nonsense://host/db", "expected an SQLAlchemy URL such as"),
    *(
        (f"name {name} in {command}", f"{command} {name}", "expected 1 to 128 letters, digits")
        for command in (
            "encode {corpus} --text-encoder fake-text:small --set",
            "fit pairs --alignment",
            "fit",
            "push pairs --alignment a --into",
            "push pairs --into bad --alignment",
            "push --into bad --alignment a",
            "ingest {corpus} --alignment a --into",
            "ingest {corpus} --into bad --alignment a --set",
            "audit things --pairs",
        )
        for name in ("../escape", ".hidden", "a/b")
    ),
]


# What the command line itself says wrong is a usage error; what it names and is not there, or broken, is a failure.
COMMAND_LINE = re.compile(
    r"unknown metric|no parameters for|expected map|no parameter '|exactly to Dot"
    r"|filter is|does not take this filter|asks for nothing|requirement '|expected every k"
    r"|expected edge:|got neither|unknown format|says itself where|(set|alignment|collection) name '"
)


@pytest.mark.parametrize(("make", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_input_ends_in_one_clear_line(
    unbroken: Path, tmp_path: Path, corpus: Path, make: str | Callable[[Path], Sequence[object]], message: str
) -> None:
    arguments = make.format(corpus=corpus).split(" ") if isinstance(make, str) else make(tmp_path)
    if arguments[0] == "fit" and "--alignment" not in arguments:
        arguments = [*arguments, "--alignment", "bad"]
    ended = modalign(*arguments, "--home", unbroken)
    assert re.search(message, ended.error), ended.error
    assert ended.code == (2 if COMMAND_LINE.search(ended.error) else 1)
    assert not (unbroken.parent / "escape").exists()
    assert not (unbroken / "escape").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("search things red -k 0", "Invalid value for '-k'"),
        ("search things red --candidates 0", "Invalid value for '--candidates'"),
        ("audit things --pairs pairs --k one", "expected numbers such as 1,5,10, got 'one'"),
        ("push pairs --into x --alignment a --payload-index year", "expected FIELD=KIND"),
        ("fit pairs --alignment x --budget 10", "expected a time above zero such as 90s, 10m or 2h, got '10'"),
        ("fit pairs --alignment x --budget 0s", "expected a time above zero such as 90s, 10m or 2h, got '0s'"),
        ("fit pairs --alignment x --budget -5m", "expected a time above zero"),
        ("push pairs --into x --alignment a --payload-index year=date", "expected FIELD=KIND"),
        ("push pairs --alignment a", "Missing option '--into'"),
        ("encode corpus", "Missing option '--set'"),
        ("fit pairs --alignment b --holdout 1", "Invalid value for '--holdout'"),
        ("rejects many", "Invalid value for '[RUN]'"),
        ("dance", "No such command 'dance'"),
        ("search things red --nonsense", "No such option"),
    ],
)
def test_usage(unbroken: Path, arguments: str, message: str) -> None:
    ended = modalign(*arguments.split(), *(["--home", unbroken] if "nonsense" not in arguments else []))
    assert (ended.code, message in ended.error) == (2, True)


class TestForeignThings:
    """Sets and alignments that do not belong together."""

    def test_a_directory_that_is_no_embedding_set(self, home: Path) -> None:
        (home / "sets" / "folder").mkdir()
        (home / "sets" / "folder" / "notes.txt").write_text("mine")
        for arguments in (
            ("fit", "folder", "--alignment", "b"),
            ("push", "folder", "--into", "new", "--alignment", "a"),
            ("audit", "things", "--pairs", "folder"),
        ):
            assert "is not an embedding set: it has no card.json" in modalign(*arguments, "--home", home).error
        encoded = modalign("encode", home, "--set", "folder", *SPECS, "--home", home)
        assert "is not an embedding set" in encoded.error
        assert (home / "sets" / "folder" / "notes.txt").read_text() == "mine"

    def test_a_set_of_another_encoder(self, home: Path, corpus: Path) -> None:
        specs = ["--image-encoder", "fake-image:small", "--text-encoder", "fake-text:other"]
        done("encode", corpus, "--set", "other", *specs, "--home", home)
        for arguments in (
            ("push", "other", "--into", "new", "--alignment", "a"),
            ("audit", "things", "--pairs", "other"),
        ):
            error = modalign(*arguments, "--home", home).error
            assert "has text vectors of fake-text:other (fingerprint " in error
            assert "the alignment was fitted for fake-text:small (fingerprint " in error
        assert (
            "of different text encoders cannot be fitted together"
            in modalign("fit", "pairs", "other", "--alignment", "b", "--home", home).error
        )
        assert [r["collection"] for r in done("status", "--json", "--home", home).document["releases"]] == ["things"]

    def test_an_alignment_of_other_dimensions(self, home: Path, corpus: Path) -> None:
        known = Alignment.load(home / "alignments" / "a")
        wider = {**cards(), "text": EncoderCard("fake-text:small", cards()["text"].fingerprint, 11)}
        card = replace(known.card, encoders=wider)
        dim = known.dim
        weights = {m: np.eye(c.dim, dim, dtype=np.float32) for m, c in wider.items()}
        Alignment(card, {m: Projection(c.dim, None, weights[m]) for m, c in wider.items()}).save(
            home / "alignments" / "b"
        )
        assert (
            "10-d), the alignment was fitted for fake-text:small (fingerprint"
            in modalign("push", "pairs", "--into", "new", "--alignment", "b", "--home", home).error
        )
        assert (
            "10-d), the alignment was fitted for"
            in modalign("ingest", corpus, "--into", "new", "--alignment", "b", "--home", home).error
        )

    def test_damaged_artifacts(self, home: Path) -> None:
        (home / "alignments" / "a" / "weights.safetensors").write_bytes(b"broken")
        assert "is damaged" in modalign("search", "things", "red", "--home", home).error
        (home / "sets" / "pairs" / "card.json").write_text("{")
        assert "is damaged" in modalign("fit", "pairs", "--alignment", "b", "--home", home).error

    def test_a_moved_home_works(self, home: Path, tmp_path: Path, shared: Path) -> None:
        found = done("search", "things", "red", "--json", "--home", shared).document
        moved = home.rename(tmp_path / "moved")
        assert done("search", "things", "red", "--json", "--home", moved).document == found
        assert done("audit", "things", "--pairs", "pairs", "--home", moved).code == 0


class TestDatabases:
    def test_a_database_that_was_never_upgraded(self, tmp_path: Path) -> None:
        for arguments in (("status",), ("search", "things", "red"), ("fit", "s", "--alignment", "a")):
            assert "run `modalign db upgrade`" in modalign(*arguments, "--home", tmp_path / "new").error
        assert not (tmp_path / "new").exists()

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "modalign.db").write_text("no database" * 100)
        for arguments in (("status",), ("db", "upgrade")):
            assert "file is not a database" in modalign(*arguments, "--home", tmp_path).error

    def test_a_home_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "home").write_text("a file")
        for arguments in (("status",), ("db", "upgrade")):
            assert str(tmp_path / "home") in modalign(*arguments, "--home", tmp_path / "home").error

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_home_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir(mode=0o500)
        assert str(tmp_path) in modalign("db", "upgrade", "--home", tmp_path / "home" / "new").error

    def test_a_disk_that_is_full(self, home: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        arguments = ("ingest", corpus, "--into", "new", "--alignment", "a", "--home", home)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            assert "No space left on device" in modalign(*arguments).error
        (run,) = done("status", "-n", 1, "--json", "--home", home).document["runs"]
        assert (run["outcome"], run["error"].endswith("[Errno 28] No space left on device")) == ("failed", True)
        assert done(*arguments, "--json").document["counts"]["written"] == 2 * N

    def test_upgrading_again_changes_nothing(self, home: Path) -> None:
        before = done("status", "--json", "--home", home).document
        done("db", "upgrade", "--home", home)
        assert done("status", "--json", "--home", home).document == before

    def test_a_database_of_an_unknown_version(self, home: Path) -> None:
        with sqlite3.connect(home / "modalign.db") as database:
            database.execute("UPDATE alembic_version SET version_num = 'ffff'")
        database.close()
        ended = modalign("db", "upgrade", "--home", home)
        assert ended.code == 1
        assert f"database sqlite:///{home}/modalign.db: " in ended.error
        assert "'ffff'; it was made by a newer modalign, or is not modalign's" in ended.error
        assert "found ffff" in modalign("status", "--home", home).error

    def test_a_home_in_use(self, home: Path) -> None:
        with EdgeStore(home / "qdrant"):
            for arguments in (("search", "things", "red"), ("push", "pairs", "--into", "things", "--alignment", "a")):
                assert "is in use by another process" in modalign(*arguments, "--home", home).error
            assert done("status", "--home", home).code == 0  # needs no store
        assert done("search", "things", "red", "--home", home).code == 0


class TestSecrets:
    """Passwords of URLs and the API key stay where they are."""

    def everything(self, ended: Ended, home: Path) -> str:
        with sqlite3.connect(home / "modalign.db") as database:
            dump = "\n".join(database.iterdump())
        database.close()
        return ended.out + ended.err + dump

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(qdrant_store, "ATTEMPTS_TO_CONNECT", 1)
        monkeypatch.setenv("MODALIGN_QDRANT_API_KEY", KEY)

    @pytest.mark.parametrize(
        "url",
        [
            f"http://me:{SECRET}@127.0.0.1:1",
            f"https://me:{SECRET}@127.0.0.1:1/x?api_key={KEY}",
            f"http://me:{SECRET}@:x",
            "https://s3cret.token@127.0.0.1:1",
            f"grpc://127.0.0.1:1?token={KEY}",
            f"127.0.0.1:1/?api-key={KEY}",
        ],
    )
    @pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning")
    def test_of_the_store(self, home: Path, url: str) -> None:
        for arguments in (("push", "pairs", "--into", "new", "--alignment", "a"), ("search", "things", "red")):
            ended = modalign(*arguments, "--qdrant-url", url, "--home", home)
            assert ended.error
            found = self.everything(ended, home)
            assert (SECRET in found, "s3cret" in found, KEY in found) == (False, False, False)

    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://me:{SECRET}@127.0.0.1:1/db",
            f"nonsense://me:{SECRET}@127.0.0.1/db",
            f"postgresql://me:{SECRET}@127.0.0.1:port/db",
            f"postgresql://me:{SECRET}@127.0.0.1:1/db?password={SECRET}",
            f"postgresql://me@127.0.0.1:1/db?sslpassword={SECRET}",
            f"postgresql://me@127.0.0.1:1/db?api_key={KEY}",
            f"postgresql://me@127.0.0.1:1/db?passfile=/{SECRET}",
            f"sqlite://me:{SECRET}@/x.db",
            f"postgresql://me:{SECRET}",
        ],
    )
    @pytest.mark.parametrize("arguments", [("status",), ("db", "upgrade")], ids=" ".join)
    def test_of_the_database(self, home: Path, url: str, arguments: tuple[str, ...]) -> None:
        ended = modalign(*arguments, "--database-url", url, "--home", home)
        assert ended.error
        found = self.everything(ended, home)
        assert (SECRET in found, "s3cret" in found, KEY in found) == (False, False, False)

    def test_in_what_is_said_of_a_good_database(self, tmp_path: Path) -> None:
        ended = done("db", "upgrade", "--home", tmp_path)
        assert "modalign.db is up to date" in ended.err


def test_a_contact_sheet_is_written_on_request(shared: Path, tmp_path: Path) -> None:
    page = tmp_path / "found" / "page.html"
    ended = done("search", "things", "red lime", "-k", 4, "--html", page, "--json", "--home", shared)
    assert len(ended.document["found"]) == 4
    assert ended.err.splitlines()[-1] == f"wrote {page}"
    assert page.read_text().count("data:image/jpeg;base64,") == 4
    blocked = modalign("search", "things", "red", "--html", tmp_path, "--home", shared)
    assert "cannot be written" in blocked.error


class TestRejectsCommand:
    @pytest.fixture
    def refused(self, home: Path, tmp_path: Path) -> tuple[Path, int]:
        """A home with an ingest that refused two images, and the number of that run."""
        rows = [{"key": f"x{number}", "image": f"none-{number}.png"} for number in range(2)]
        manifest = write_manifest(tmp_path / "m.jsonl", fake_pairs(tmp_path, 4, seed=1), *rows)
        ended = modalign("ingest", manifest, "--into", "new", "--alignment", "a", "--json", "--home", home)
        assert ended.code == 4
        return home, ended.document["run"]

    def test_counted_by_reason(self, refused: tuple[Path, int]) -> None:
        home, run = refused
        document = done("rejects", run, "--by-reason", "--json", "--home", home).document
        assert document == {"run": run, "by_reason": [{"stage": "read", "reason": "image-missing", "count": 2}]}
        assert "image-missing" in done("rejects", "--by-reason", "--home", home).out

    def test_exported(self, refused: tuple[Path, int], tmp_path: Path) -> None:
        home, run = refused
        done("rejects", run, "--export", tmp_path / "r.jsonl", "--home", home)
        printed = done("rejects", run, "--export", "-", "--home", home).out
        assert (tmp_path / "r.jsonl").read_text() == printed
        lines = [json.loads(line) for line in printed.splitlines()]
        assert [(line["run"], line["key"], line["position"]) for line in lines] == [(run, "x0", 5), (run, "x1", 6)]

    def test_tried_again(self, refused: tuple[Path, int], tmp_path: Path) -> None:
        home, run = refused
        Image.new("RGB", (8, 8), "red").save(tmp_path / "none-0.png")
        ended = modalign("rejects", run, "--retry", "--json", "--home", home)
        counts = ended.document["counts"]
        assert (ended.code, counts["encoded"], counts["rejected"]) == (4, 1, 1)
        Image.new("RGB", (8, 8), "blue").save(tmp_path / "none-1.png")
        assert done("rejects", run, "--retry", "--home", home)
        assert done("status", "--json", "--home", home).document["releases"][-1]["points"] == 10

    def test_a_run_that_cannot_be_tried_again(self, home: Path) -> None:
        runs = done("status", "-n", 1000, "--json", "--home", home).document["runs"]
        fit = next(run["run"] for run in runs if run["command"] == "fit")
        ended = modalign("rejects", fit, "--retry", "--home", home)
        assert (ended.code, "is of `modalign fit`" in ended.err) == (2, True)

    def test_one_thing_at_a_time(self, unbroken: Path) -> None:
        assert "exclude each other" in modalign("rejects", "--retry", "--by-reason", "--home", unbroken).error


class TestDeleting:
    def test_nobody_is_there_to_ask(self, unbroken: Path, corpus: Path) -> None:
        for words in (
            ("delete", "things", "--key", "s0-00001"),
            ("ingest", corpus, "--into", "things", "--alignment", "a", "--prune"),
        ):
            ended = modalign(*words, "--home", unbroken)
            assert (ended.code, "add --yes" in ended.error) == (2, True)

    def test_parts_ask_nobody(self, unbroken: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        words = ("ingest", corpus, "--into", "things", "--alignment", "a", "--prune", "--parts", 2)
        assert "add --yes" in modalign(*words, "--home", unbroken).error

    @pytest.mark.parametrize(("answer", "left"), [(True, N - 1), (False, N)])
    def test_on_a_terminal_it_asks(self, home: Path, monkeypatch: pytest.MonkeyPatch, answer: bool, left: int) -> None:
        asked: list[str] = []
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

        def confirm(question: str, **_: Any) -> bool:
            asked.append(question)
            return answer

        monkeypatch.setattr(click, "confirm", confirm)
        ended = modalign("delete", "things", "--key", "s0-00001", "--home", home)
        assert ended.code == int(not answer)
        assert asked == ["delete 1 items, from the embedding sets: pairs; from the collections: things?"]
        assert ("nothing was deleted" in ended.err) is not answer
        assert EmbeddingSet.open(home / "sets" / "pairs").card.counts["image"] == left

    def test_by_filter_with_yes(self, home: Path) -> None:
        condition = '{"must": [{"key": "group", "match": {"value": "s0-00002"}}]}'
        words = ("delete", "things", "--filter", condition, "--yes", "--json", "--home", home)
        assert done(*words).document["deleted"] == 2
        assert done(*words).document["deleted"] == 0

    def test_neither_key_nor_filter(self, unbroken: Path) -> None:
        assert "expected --key or --filter" in modalign("delete", "things", "--yes", "--home", unbroken).error

    def test_pruning_keeps_what_a_broken_row_may_be(self, home: Path, tmp_path: Path) -> None:
        found = fake_pairs(tmp_path, 6, seed=1)
        words = ("--into", "new", "--alignment", "a", "--prune", "--yes", "--home", home)
        done("ingest", write_manifest(tmp_path / "m.jsonl", found), *words)
        manifest = write_manifest(tmp_path / "m.jsonl", found[:4], {"image": "no key"})
        ended = modalign("ingest", manifest, *words)
        assert (ended.code, "4 items of the embedding set were not met" in ended.error) == (1, True)
        done("ingest", write_manifest(tmp_path / "m.jsonl", found[:4]), *words)
        assert EmbeddingSet.open(home / "sets" / "new").card.counts == {"image": 4, "text": 4}


def test_status_shows_how_far_a_release_lags(home: Path, corpus: Path, tmp_path: Path) -> None:
    found = fake_pairs(tmp_path, 3, seed=5)
    (release,) = done("status", "--json", "--home", home).document["releases"]
    assert (release["lag"], release["lag_since"]) == (0, None)
    done("encode", write_manifest(tmp_path / "m.jsonl", found), "--set", "pairs", *SPECS, "--home", home)
    (release,) = done("status", "--json", "--home", home).document["releases"]
    assert release["lag"] == 6
    assert release["lag_since"] is not None


FAILING: dict[tuple[str, ...], str] = {
    ("db", "upgrade"): "db upgrade --database-url sqlite:////no/such/directory/x.db",
    ("encode",): "encode /no/such/corpus.jsonl --set bad --text-encoder fake-text:small",
    ("fit",): "fit nothing --alignment b",
    ("gap",): "gap nothing",
    ("compare",): "compare nothing",
    ("push",): "push nothing --into things --alignment a",
    ("ingest",): "ingest /no/such/corpus.jsonl --into things --alignment a",
    ("delete",): "delete nothing --key a --yes",
    ("import",): "import /no/such --set s --image-encoder i --text-encoder t",
    ("promote",): "promote nothing",
    ("rollback",): "rollback nothing",
    ("drop",): "drop nothing --retired --yes",
    ("search",): "search nothing red",
    ("export",): "export nothing --metric cosine --to bad",
    ("audit",): "audit nothing --pairs pairs",
    ("status",): "status --database-url sqlite:////no/such/directory/x.db",
    ("rejects",): "rejects 4711",
    ("demo",): "demo --device cuda:99",
}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_that_fails_ends_with_0(unbroken: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    home = tmp_path if words == ("demo",) else unbroken
    (tmp_path / "file").touch()
    arguments = FAILING[words].replace("/no/such/directory", str(tmp_path / "file")).split()
    assert modalign(*arguments, "--home", home).code in (1, 2)
