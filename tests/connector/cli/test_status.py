"""The command `status`: which alignment is live where, what is not pushed yet, and what was done."""

import os
import platform
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import update

from alignment.model.alignment import Alignment
from alignment.sets.cards import CARD
from connector.provenance.recorder import Provenance
from connector.provenance.tables import RunRow
from connector.settings import Settings
from tests.support.cli import N, done, modalign
from tests.support.sparse_copy import copy_sparse

LONG = "our-spring-catalogue-of-postage-stamps"


@pytest.fixture(scope="module")
def two_alignments(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which `a` is live under two metrics, and a shadow of `second` waits; and a collection beside."""
    home = copy_sparse(shared, tmp_path_factory.mktemp("two") / "home")
    done("fit", "pairs", "--alignment", "second", "--method", "procrustes", "--home", home)
    done("push", "pairs", "--into", "things", "--alignment", "a", "--metric", "dot", "--home", home)
    done("push", "pairs", "--into", "things", "--alignment", "second", "--home", home)
    done("push", "pairs", "--into", LONG, "--alignment", "second", "--home", home)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--json"], ["-n", "1"]])
def test_a_collection_that_is_not_known_is_an_error_that_names_those_that_are(
    arguments: list[str], two_alignments: Path
) -> None:
    ended = modalign("status", "thing", *arguments, "--home", two_alignments)
    searched = modalign("search", "thing", "red", "--home", two_alignments)
    assert (ended.code, ended.error_code, ended.out) == (searched.code, searched.error_code, "")
    for name in ("'thing'", "things", LONG):
        assert name in ended.error


def test_a_collection_whose_releases_were_all_dropped_is_known(home: Path) -> None:
    done("fit", "pairs", "--alignment", "b", "--method", "procrustes", "--home", home)
    done("push", "pairs", "--into", "other", "--alignment", "b", "--home", home)
    with closing(sqlite3.connect(home / "modalign.db")) as database, database:
        database.execute("UPDATE release SET dropped_at = created_at WHERE collection = 'other'")
    document = done("status", "other", "--json", "--home", home).document
    assert (document["releases"], [run["command"] for run in document["runs"]]) == ([], ["push"])


@pytest.mark.slow
def test_it_says_which_alignment_is_live_with_its_encoders(two_alignments: Path) -> None:
    ended = done("status", "things", "--home", two_alignments)
    assert ended.out.splitlines()[0] == "things: alignment a is live"
    document = done("status", "things", "--json", "--home", two_alignments).document
    rows = {(row["state"], row["metric"]): row for row in document["releases"]}
    assert rows.keys() == {("live", "cosine"), ("live", "dot"), ("ready", "cosine")}
    for (state, _), row in rows.items():
        name = "a" if state == "live" else "second"
        fingerprint = Alignment.load(two_alignments / "alignments" / name).fingerprint
        assert (row["alignment"], row["alignment_fingerprint"]) == (name, fingerprint)
        assert row["encoders"] == {"image": "fake-image:small", "text": "fake-text:small"}
        assert all(word in ended.out for word in (name, fingerprint[:8], *row["encoders"].values()))
        assert (row["points"], row["stored"], row["lag"]) == (2 * N, 2 * N, 0)


@pytest.mark.parametrize(("path", "what"), [("sets/pairs", "embedding set"), ("alignments/a", "alignment")])
def test_what_a_release_was_made_of_is_named_where_it_is_gone_from_disk(home: Path, path: str, what: str) -> None:
    gone, away = home / path, home / "away"
    gone.rename(away)
    (row,) = done("status", "things", "--json", "--home", home).document["releases"]
    (fault,) = row["faults"]
    assert fault.startswith(f"{what} {gone.name}: ")
    assert str(gone) in fault
    assert f"{row['physical_name']}: {what} {gone.name}" in done("status", "--home", home).out
    away.rename(gone)
    assert done("status", "things", "--json", "--home", home).document["releases"][0]["faults"] == []
    (gone / CARD).write_text("{")
    (row,) = done("status", "things", "--json", "--home", home).document["releases"]
    assert "is damaged" in row["faults"][0]


def test_an_alignment_that_was_renamed_is_there(home: Path) -> None:
    (home / "alignments" / "a").rename(home / "alignments" / "renamed")
    assert done("status", "things", "--json", "--home", home).document["releases"][0]["faults"] == []


def test_the_only_alignment_of_a_collection_is_named_once(two_alignments: Path) -> None:
    first, head, *_ = done("status", LONG, "--home", two_alignments).out.splitlines()
    assert first == f"{LONG}: alignment second is live"
    assert "alignment" not in head


def test_alignments_that_are_live_under_different_metrics_are_told_apart(two_alignments: Path) -> None:
    done("promote", "things", "--force", "--reason", "a test", "--home", two_alignments)
    first = done("status", "things", "--home", two_alignments).out.splitlines()[0]
    assert first == "things: alignment a is live under dot, alignment second is live under cosine"
    done("rollback", "things", "--home", two_alignments)


def test_columns_that_nothing_fills_are_left_out(two_alignments: Path) -> None:
    lines = done("status", "things", "--home", two_alignments).out.splitlines()
    heads = " ".join(line for line, below in pairwise(lines) if below.startswith(" ─"))
    assert all(name in heads for name in ("points", "lag", "counts"))
    assert all(name not in heads for name in ("hnsw", "stored", "lag since", "error", "store"))


def test_of_a_collection_it_lists_the_runs_of_that_collection(two_alignments: Path) -> None:
    def commands(*collection: str) -> list[str]:
        runs = done("status", *collection, "-n", 1000, "--json", "--home", two_alignments).document["runs"]
        return [run["command"] for run in runs]

    assert commands(LONG) == ["push"]
    assert set(commands("things")) <= {"push", "promote", "rollback"}
    assert {"fit", "encode"} < set(commands())


@pytest.mark.parametrize(("pid", "outcome"), [(2**22 + 1, "killed"), (os.getppid(), "running")])
def test_a_run_whose_process_is_gone_was_killed(home: Path, pid: int, outcome: str) -> None:
    with Provenance.open(Settings.load(home=home).database_url) as provenance:
        with provenance.runs.start("push", {"into": "things"}) as run:
            pass
        with provenance.database.session() as session:
            values = {"outcome": "running", "host": platform.node(), "pid": pid}
            session.execute(update(RunRow).where(RunRow.id == run.id).values(**values))
    for collection in ([], ["things"]):
        told = done("status", *collection, "--json", "--home", home).document["runs"][0]
        assert (told["run"], told["outcome"]) == (run.id, outcome)
