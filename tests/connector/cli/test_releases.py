"""Commands on releases: status, promote, rollback, drop, verify, repair."""

import json
import re
import shlex
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from alignment.modality import DIRECTIONS
from alignment.model.alignment import Alignment
from connector.errors import StoreUnavailableError
from connector.provenance.recorder import Provenance
from connector.releases.store_identity import OWNER
from connector.stores.edge import EdgeStore
from connector.stores.points import Points
from tests.support.cli import SPECS, Ended, done, modalign
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.sparse_copy import copy_sparse
from tests.support.world import points_of


def releases(home: Path) -> dict[str, str]:
    """The release of each alignment under cosine, by the alignment's name."""
    paths = sorted((home / "alignments").iterdir())
    return {path.name: f"things.cosine.{Alignment.load(path).fingerprint[:8]}" for path in paths}


@pytest.fixture(scope="module")
def beside(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a shadow of another alignment beside the live release."""
    home = copy_sparse(shared, tmp_path_factory.mktemp("beside") / "home")
    done("fit", "pairs", "--alignment", "b", "--method", "procrustes", "--home", home)
    ended = done("push", "pairs", "--into", "things", "--alignment", "b", "--home", home)
    name = releases(home)["b"]
    assert ended.err.splitlines()[-1] == (
        f"{name} is ready beside what is live of things under cosine: run `modalign audit things --release ready "
        "--pairs pairs --require 'recall@10>=0.4'`, then `modalign promote things`"
    )
    return home


class TestAWorseShadow:
    """A shadow may pass its requirements and still find less than what is live: audit and promotion say so."""

    @pytest.fixture
    def home(self, shared: Path, tmp_path: Path) -> Path:
        """The shared home, whose live release is audited, with a shadow that ranks the worst first."""
        home = copy_sparse(shared, tmp_path / "home")
        live = Alignment.load(home / "alignments" / "a")
        text = live.projections["text"]
        assert text.weight is not None
        turned = replace(text, weight=-text.weight)
        replace(live, projections={**live.projections, "text": turned}).save(home / "alignments" / "worse")
        done("push", "pairs", "--into", "things", "--alignment", "worse", "--home", home)
        done("audit", "things", "--pairs", "pairs", "--home", home)
        return home

    def test_audit_and_promotion_say_so_and_refuse_nothing(self, home: Path) -> None:
        asked = ("audit", "things", "--release", "ready", "--pairs", "pairs", "--require", "recall@1>=0")
        (found,) = done(*asked, "--json", "--home", home).document["audits"]
        assert found["verdict"] == "passed"
        worse = {(drift["direction"], drift["part"]): drift for drift in found["worse_than_live"]}
        assert {(direction, "") for direction in DIRECTIONS} <= worse.keys()
        for drift in worse.values():
            assert drift["measure"] == "recall@10"
            assert (drift["against"], drift["significant"]) == (1, True)
            assert drift["difference"]["high"] < 0
        assert done(*asked, "--home", home).out.count("Worse than the live release") == len(worse)
        promoted = done("promote", "things", "--json", "--home", home)
        (switched,) = promoted.document["switched"]
        assert len(switched["worse"]) == len(worse)
        assert all(sentence in promoted.err for sentence in switched["worse"])
        (back,) = done("rollback", "things", "--json", "--home", home).document["switched"]
        assert back["worse"] == []

    @pytest.mark.slow
    def test_against_an_audit_that_was_made_otherwise_nothing_is_said(self, home: Path) -> None:
        asked = ("--gallery", "all", "--release", "ready", "--pairs", "pairs", "--require", "recall@1>=0", "--json")
        (found,) = done("audit", "things", *asked, "--home", home).document["audits"]
        assert found["worse_than_live"] == []


METRICS = ("cosine", "euclid")
AUDIT = "audit things --release ready --pairs pairs --require 'recall@10>=0.4'"


@pytest.fixture(scope="module")
def several(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = copy_sparse(shared, tmp_path_factory.mktemp("several") / "home")
    done("fit", "pairs", "--alignment", "b", "--method", "procrustes", "--home", home)
    options = [option for metric in METRICS for option in ("--metric", metric)]
    done("push", "pairs", "--into", "things", "--alignment", "a", *options, "--home", home)
    ended = done("push", "pairs", "--into", "things", "--alignment", "b", *options, "--home", home)
    assert f"`modalign {AUDIT}`" in ended.err.splitlines()[-1]
    return home


class TestSeveralMetrics:
    """A push under several metrics beside the live releases: one audit covers what one promotion switches."""

    @pytest.fixture
    def home(self, several: Path, tmp_path: Path) -> Path:
        return copy_sparse(several, tmp_path / "home")

    @pytest.mark.slow
    def test_the_sequence_of_the_readme_ends_in_a_promotion(self, home: Path) -> None:
        refused = modalign("promote", "things", "--home", home)
        assert refused.code == 3
        (command,) = set(re.findall(r"`modalign (audit [^`]+)`", refused.err))
        assert command == AUDIT
        ended = done(*shlex.split(command), "--home", home)
        table = ended.out[ended.out.index("every metric") :].splitlines()
        assert [line.split()[::2][:2] for line in table if "passed" in line] == [
            [metric, "passed"] for metric in METRICS
        ]
        assert max(map(len, table)) <= 80
        assert ended.out.count("Met: recall@10>=0.4, among held-out items alone.") == 2
        switched = done("promote", "things", "--json", "--home", home).document["switched"]
        assert [(line["metric"], line["audit"]) for line in switched] == list(zip(METRICS, (1, 2), strict=True))

    @pytest.mark.slow
    def test_the_next_command_requires_what_the_live_release_had_to_meet(self, home: Path) -> None:
        required = ("--require", "recall@5>=0.2", "--require", "unseen recall@10>=0.1")
        done("audit", "things", "--pairs", "pairs", "--metric", "cosine", *required, "--home", home)
        done("audit", "things", "--pairs", "pairs", "--metric", "cosine", "--home", home)
        shown = done("push", "pairs", "--into", "things", "--alignment", "b", "--home", home).err
        assert "--pairs pairs --require 'recall@10>=0.4'`" in shown  # the newest one required nothing
        done("audit", "things", "--pairs", "pairs", "--metric", "cosine", *required, "--home", home)
        shown = done("push", "pairs", "--into", "things", "--alignment", "b", "--home", home).err
        (command,) = re.findall(r"`modalign (audit [^`]+)`", shown)
        assert shlex.split(command)[4:] == ["--pairs", "pairs", *required]
        assert f"`modalign {command}`" in done("status", "things", "--home", home).out

    def test_the_next_command_requires_again_what_a_release_has_failed(self, home: Path) -> None:
        failed = ("--require", "recall@10>1")
        audit = ("audit", "things", "--release", "ready", "--pairs", "pairs", *failed)
        assert modalign(*audit, "--home", home).code == 3
        refused = modalign("promote", "things", "--home", home)
        assert refused.code == 3
        assert {tuple(shlex.split(command)) for command in re.findall(r"`modalign (audit [^`]+)`", refused.err)} == {
            audit
        }

    def test_the_document_the_log_the_page_and_the_exit_code_are_of_all(self, home: Path, tmp_path: Path) -> None:
        files = [f"--report={tmp_path / 'a.html'}", f"--prometheus={tmp_path / 'a.prom'}", f"--jsonl={tmp_path / 'a'}"]
        audit = ("audit", "things", "--release", "ready", "--pairs", "pairs", "--home", home, "--json")
        ended = modalign(*audit, "--require", "recall@10>=0", "--require", "euclid:recall@10>=0")
        assert ended.code == 2  # there is no such part
        ended = modalign(*audit, "--require", "recall@10>1", *files)
        assert ended.code == 3
        document = ended.document
        assert (list(document), document["verdict"]) == (["run", "verdict", "audits"], "failed")
        assert [one["metric"] for one in document["audits"]] == list(METRICS)
        assert {one["run"] for one in document["audits"]} == {document["run"]}
        new = releases(home)["b"]
        assert f"{new}: not met: recall@10>1: " in ended.err
        lines = (tmp_path / "a").read_text().splitlines()
        assert [json.loads(line)["metric"] for line in lines] == list(METRICS)
        pages = [f"a.{metric}.html" for metric in METRICS]
        assert sorted(path.name for path in tmp_path.glob("*.html")) == pages
        assert all(f"wrote {tmp_path / page}" in ended.err for page in pages)
        assert (tmp_path / "a.prom").read_text().count('verdict="failed"} 1.0') == 2

    @pytest.mark.slow
    def test_one_release_alone_has_the_document_of_an_audit(self, home: Path) -> None:
        audit = ("audit", "things", "--pairs", "pairs", "--home", home, "--json")
        ready = (*audit, "--release", "ready")
        assert done(*ready, "--metric", "euclid").document["metric"] == "euclid"
        done("promote", "things", "--metric", "cosine", "--force", "--reason", "so that one is left", "--home", home)
        assert [one["metric"] for one in done(*ready).document["audits"]] == ["euclid"]
        assert done(*audit).document["metric"] == "cosine"


class TestReleases:
    """From a shadow to a live release and back, as whoever is on call does it."""

    @pytest.fixture
    def home(self, beside: Path, tmp_path: Path) -> Path:
        return copy_sparse(beside, tmp_path / "home")

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
                f"a shadow: run `modalign {AUDIT}`, then `modalign promote things`",
            ),
        }
        refused = modalign("promote", "things", "--home", home)
        assert (refused.code, refused.out) == (3, "")
        assert refused.err.startswith(f"modalign: release {new} was never audited; audit with `modalign audit ")
        assert self.audit(home, "recall@1>1").code == 3
        refused = modalign("promote", "things", "--home", home)
        assert (refused.code, "has failed: recall@1>1" in refused.err) == (3, True)
        (shadow,) = [pending for state, pending in self.states(home).values() if state == "ready"]
        assert "recall@1>1" in shadow
        for said in (shadow, refused.err):  # the same audit would only fail again
            assert "better alignment" in said
        assert [audit["collection"] for audit in self.audit(home).document["audits"]] == [new]
        switched = done("promote", "things", "--json", "--home", home).document["switched"]
        (line,) = switched
        assert (line["live"], line["before"], line["forced_by"]) == (new, old, None)
        assert line["audit"] is not None
        assert self.states(home) == {old: ("retired", ""), new: ("live", "")}
        again = done("promote", "things", "--home", home)
        assert "nothing is left to switch" in again.out
        assert "--into things" in again.err
        assert done("promote", "things", "--release", "ready", "--json", "--home", home).document["switched"] == []
        assert done("rollback", "things", "--json", "--home", home).document["switched"][0]["live"] == old
        assert self.states(home) == {old: ("live", ""), new: ("retired", "")}
        ended = modalign("drop", "things", "--retired", "--home", home)
        assert (ended.code, "modalign drop asks before it deletes: add --yes" in ended.err) == (2, True)
        document = done("drop", "things", "--retired", "--yes", "--json", "--home", home).document
        assert document["dropped"] == [new]
        assert self.states(home) == {old: ("live", "")}
        assert done("drop", "things", "--retired", "--json", "--home", home).document == {"run": None, "dropped": []}
        commands = [run["command"] for run in done("status", "--json", "--home", home).document["runs"]]
        assert commands[:7] == ["drop", "rollback", "promote", "promote", "promote", "audit", "promote"]

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

    def live(self, home: Path) -> str:
        (name,) = [name for name, (state, _) in self.states(home).items() if state == "live"]
        return name

    @pytest.mark.slow
    def test_a_rollback_under_a_name_is_done_once(self, home: Path) -> None:
        """A scheduler that repeats it, not knowing whether it was done, undoes no later promotion."""
        old, new = releases(home).values()
        by_force = ("promote", "things", "--release", new, "--force", "--reason", "a trial", "--home", home)
        named = ("rollback", "things", "--request", "night", "--json", "--home", home)
        done(*by_force)
        assert [row["live"] for row in done(*named).document["switched"]] == [old]
        assert done(*named).document["switched"] == []
        done("push", "pairs", "--into", "things", "--alignment", "b", "--home", home)
        done(*by_force)
        assert done(*named).document["switched"] == []
        assert self.live(home) == new
        other = modalign("promote", "things", "--request", "night", "--home", home)
        assert (other.code, "night" in other.error, "rollback" in other.error) == (2, True, True)
        assert [row["live"] for row in done(*named[:3], "next", *named[4:]).document["switched"]] == [old]

    def test_a_rollback_to_a_release_goes_further_back_and_repeated_no_further(self, home: Path) -> None:
        done("fit", "pairs", "--alignment", "c", "--method", "rcca", "--home", home)
        done("push", "pairs", "--into", "things", "--alignment", "c", "--home", home)
        first, second, third = releases(home).values()
        to = ("rollback", "things", "--json", "--home", home, "--to")
        never = modalign(*to, second)
        assert (never.code, second in never.error) == (1, True)
        for name in (second, third):
            done("promote", "things", "--release", name, "--force", "--reason", "a trial", "--home", home)
        assert [(row["live"], row["before"]) for row in done(*to, first).document["switched"]] == [(first, third)]
        assert done(*to, first).document["switched"] == []
        assert self.live(home) == first
        assert modalign(*to, first, "--metric", "cosine").code == 2

    @pytest.mark.parametrize("command", [("repair", "things"), ("status", "things", "--repair")])
    def test_many_orphans_are_deleted_only_by_their_number(self, home: Path, command: tuple[str, ...]) -> None:
        name = releases(home)["a"]
        with EdgeStore(home / "qdrant") as store:
            vectors = np.ones((30, store.describe(name).vectors["image"].dim), np.float32)
            store.upsert(name, Points("image", points_of(30), vectors, [{}] * 30))
            before = store.count(name)
        ended = modalign(*command, "--yes", "--home", home)
        assert (ended.code, "--delete-orphans 30" in ended.err) == (1, True)
        for number in (1, 29, 31):
            ended = modalign("repair", "things", "--delete-orphans", number, "--home", home)
            assert (ended.code, str(number) in ended.error, "30" in ended.error) == (1, True, True)
        with EdgeStore(home / "qdrant") as store:
            assert store.count(name) == before
        ended = done("repair", "things", "--delete-orphans", 30, "--json", "--home", home)
        assert [row["orphans"] for row in ended.document["verified"]] == [0, 0]
        with EdgeStore(home / "qdrant") as store:
            assert store.count(name) == before - 30

    def test_what_another_database_has_taken_over_is_forgotten_by_its_own_word(self, home: Path) -> None:
        name = releases(home)["a"]
        with EdgeStore(home / "qdrant") as store:
            store.add_metadata(name, {OWNER: {"store": "another"}})
        assert modalign("drop", "things", "--taken-over", "--retired", "--home", home).code == 2
        assert modalign("drop", "things", "--taken-over", "--home", home).code == 2  # nobody to ask
        assert done("drop", "things", "--taken-over", "--yes", "--json", "--home", home).document["dropped"] == [name]
        assert [*self.states(home)] == [releases(home)["b"]]
        with EdgeStore(home / "qdrant") as store:
            assert name in store.collections()

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
        assert (ended.code, "drop 1 release of things?" in ended.err) == (code, True)
        assert (shadow in self.states(home)) == bool(code)

    def test_verify_and_repair(self, home: Path) -> None:
        names = releases(home)
        document = done("verify", "things", "--json", "--home", home).document
        assert {each["release"]: each["consistent"] for each in document["verified"]} == dict.fromkeys(
            names.values(), True
        )
        with EdgeStore(home / "qdrant") as store:
            gone = next(record for page in store.scroll(names["b"]) for record in page)
            vector = np.ones((1, store.describe(names["a"]).vectors["image"].dim), np.float32)
            store.delete(names["b"], [gone.id])
            store.upsert(names["a"], Points("image", points_of(1), vector, [{}]))
        ended = modalign("verify", "--json", "--home", home)
        found = {each["release"]: (each["missing"], each["orphans"]) for each in ended.document["verified"]}
        assert (ended.code, found) == (1, {names["a"]: (0, 1), names["b"]: (1, 0)})
        assert ended.document["examples"] == {
            names["a"]: {"orphans": points_of(1)},
            names["b"]: {"missing": [f"{gone.payload['modality']}:{gone.payload['key']}"]},
        }
        shown = modalign("verify", "things", "--home", home)
        assert (shown.code, f"{names['a']}: orphans, for example {points_of(1)[0]}" in shown.err) == (1, True)
        ended = modalign("repair", "things", "--home", home)
        assert (ended.code, "add --yes" in ended.err) == (2, True)
        done("repair", "things", "--yes", "--home", home)
        assert done("verify", "--json", "--home", home).document["examples"] == {}

    def test_each_verification_names_the_seed_of_its_sample_which_repeats_it(self, home: Path) -> None:
        def seeds(*options: object) -> set[int]:
            return {row["seed"] for row in done("verify", *options, "--json", "--home", home).document["verified"]}

        first, second = seeds(), seeds("--full")
        assert (len(first), len(second), first != second) == (1, 1, True)
        assert seeds("--seed", *first) == first

    def test_what_is_broken_keeps_nobody_from_verifying_and_mending_the_others(self, home: Path) -> None:
        names = releases(home)
        with EdgeStore(home / "qdrant") as store:
            gone = next(record for page in store.scroll(names["b"]) for record in page)
            store.delete(names["b"], [gone.id])
        (home / "alignments" / "a").rename(home / "elsewhere")
        ended = modalign("verify", "--json", "--home", home)
        first, second = ended.document["verified"]
        assert (ended.code, first["release"], first["consistent"], first["points"]) == (1, names["a"], False, None)
        assert str(home / "alignments" / "a") in first["broken"]
        assert (second["release"], second["missing"], second["broken"]) == (names["b"], 1, None)
        shown = modalign("verify", "--home", home)
        assert (shown.code, f"{names['a']}: broken: {first['broken']}" in shown.out) == (1, True)
        assert f"{names['b']}: missing, for example" in shown.err
        ended = modalign("repair", "--yes", "--json", "--home", home)
        assert (ended.code, [row["consistent"] for row in ended.document["verified"]]) == (1, [False, True])
        (home / "elsewhere").rename(home / "alignments" / "a")
        (home / "sets" / "pairs").rename(home / "elsewhere")
        ended = modalign("verify", "--json", "--home", home)
        assert ended.code == 1
        assert all(str(home / "sets" / "pairs") in row["broken"] for row in ended.document["verified"])
        (home / "elsewhere").rename(home / "sets" / "pairs")
        assert [row["broken"] for row in done("verify", "--json", "--home", home).document["verified"]] == [
            None,
            None,
        ]

    def test_a_store_that_does_not_answer_is_no_release_that_is_broken(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def describe(*_: object) -> None:
            raise StoreUnavailableError("not now")

        monkeypatch.setattr(EdgeStore, "describe", describe)
        ended = modalign("verify", "--home", home)
        assert (ended.error, ended.error_code) == ("modalign: not now", "store-unavailable")

    def test_verifying_what_is_not_there(self, home: Path) -> None:
        ended = modalign("verify", "nothing", "--home", home)
        assert f"no release of collection 'nothing' in the store edge:{home / 'qdrant'}" in ended.error


def test_status_shows_how_far_a_release_lags(home: Path, corpus: Path, tmp_path: Path) -> None:
    found = fake_pairs(tmp_path, 3, seed=5)
    (release,) = done("status", "--json", "--home", home).document["releases"]
    assert (release["lag"], release["lag_since"]) == (0, None)
    done("encode", write_manifest(tmp_path / "m.jsonl", found), "--set", "pairs", *SPECS, "--home", home)
    (release,) = done("status", "--json", "--home", home).document["releases"]
    assert release["lag"] == 6
    assert release["lag_since"] is not None
