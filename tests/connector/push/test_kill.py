"""A command that is killed at any moment and run again ends where an undisturbed one does."""

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from connector.provenance.recorder import Provenance
from connector.provenance.tables import BatchRow, ReleaseRow, RunRow
from connector.stores.edge import EdgeStore
from tests.support import launcher
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.world import stored

N = 40
SECONDS = 60.0
KILLED = -signal.SIGKILL


@dataclass
class Runner:
    """Runs `modalign` in children of the fork server."""

    processes: ForkServerContext
    output: Path

    def start(self, *arguments: str) -> Any:
        """Start it; it has set itself up when this returns."""
        ready = self.processes.Event()
        process = self.processes.Process(target=launcher.child, args=(arguments, {}, self.output, ready))
        process.start()
        assert ready.wait(SECONDS)
        return process

    def finish(self, process: Any) -> int:
        process.join(SECONDS)
        assert process.exitcode is not None, "it hangs"
        return int(process.exitcode)

    def run(self, *arguments: str) -> int:
        return self.finish(self.start(*arguments))

    def kill(self, process: Any, seconds: float) -> int:
        """Kill its process group after `seconds`."""
        process.join(seconds)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
        return self.finish(process)

    @property
    def errors(self) -> str:
        return self.output.with_suffix(".err").read_text()


@pytest.fixture(scope="module")
def runner(processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(processes, tmp_path_factory.mktemp("output") / "last")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    return write_manifest(directory / "things.jsonl", fake_pairs(directory, N, captions=2))


def encoding(home: Path, corpus: Path) -> list[str]:
    specs = ["--image-encoder", "fake-image:small", "--text-encoder", "fake-text:small"]
    return [
        "encode",
        str(corpus),
        "--set",
        "pairs",
        *specs,
        "--batch-size",
        "4",
        "--shard-size",
        "16",
        "--home",
        str(home),
    ]


def ingesting(home: Path, corpus: Path) -> list[str]:
    metrics = ["--metric", "cosine", "--metric", "euclid"]
    return ["ingest", str(corpus), "--into", "things", "--alignment", "a", *metrics, "--home", str(home)]


@pytest.fixture(scope="module")
def fitted(runner: Runner, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a database, an embedding set and an alignment, and no store yet."""
    home = tmp_path_factory.mktemp("fitted")
    assert runner.run("db", "upgrade", "--home", str(home)) == 0
    assert runner.run(*encoding(home, corpus)) == 0, runner.errors
    assert runner.run("fit", "pairs", "--alignment", "a", "--method", "ridge", "--home", str(home)) == 0, runner.errors
    return home


@pytest.fixture
def home(fitted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fitted, tmp_path / "home")


def sets(home: Path) -> dict[str, Any]:
    """Every row of every embedding set in its order, with the shards they lie in and the fingerprints."""
    found: dict[str, Any] = {}
    for path in sorted((home / "sets").iterdir()):
        if path.is_dir():
            opened = EmbeddingSet.open(path)
            rows = {m: opened.load(m) for m in MODALITIES}
            found[path.name] = (
                opened.card.fingerprint,
                opened.card.counts,
                sorted(file.name for file in path.iterdir()),
                {m: (r.keys, r.groups, r.content_sha256, r.payloads, r.vectors.tobytes()) for m, r in rows.items()},
            )
    return found


def everything(home: Path) -> dict[str, Any]:
    """What the command has made: sets, collections, aliases, ledger and releases."""
    with (
        Provenance.open(f"sqlite:///{home / 'modalign.db'}", home=home) as provenance,
        provenance.database.session() as session,
    ):
        columns = (ReleaseRow.physical_name, BatchRow.shard, BatchRow.start, BatchRow.points, BatchRow.digest)
        query = select(*columns).join(BatchRow, BatchRow.release_id == ReleaseRow.id)
        ledger = sorted(map(tuple, session.execute(query)))
        releases = sorted((r.physical_name, r.state, r.points) for r in session.scalars(select(ReleaseRow)))
    with EdgeStore(home / "qdrant") as store:
        collections = {name: {m: stored(store, name, m) for m in MODALITIES} for name in store.collections()}
        aliases = store.aliases()
    files = sorted(path.name for path in (home / "qdrant" / "collections").iterdir())
    assert files == sorted(collections)
    return {"sets": sets(home), "ledger": ledger, "releases": releases, "collections": collections, "aliases": aliases}


def outcomes(home: Path) -> list[tuple[str, str]]:
    with (
        Provenance.open(f"sqlite:///{home / 'modalign.db'}", home=home) as provenance,
        provenance.database.session() as session,
    ):
        return [(row.command, row.outcome) for row in session.scalars(select(RunRow).order_by(RunRow.id))][2:]


@dataclass
class Undisturbed:
    """One run that nothing disturbed: what it made, and how many seconds it took."""

    made: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module")
def encoded(runner: Runner, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    home = tmp_path_factory.mktemp("undisturbed")
    assert runner.run("db", "upgrade", "--home", str(home)) == 0
    started = time.monotonic()
    assert runner.run(*encoding(home, corpus)) == 0, runner.errors
    return Undisturbed(sets(home), time.monotonic() - started)


@pytest.fixture(scope="module")
def ingested(runner: Runner, fitted: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    home = shutil.copytree(fitted, tmp_path_factory.mktemp("undisturbed") / "home")
    started = time.monotonic()
    assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
    seconds = time.monotonic() - started
    made = everything(home)
    assert made["sets"]["things"][1] == {"image": N, "text": 2 * N}
    assert [(state, points) for _, state, points in made["releases"]] == [("live", 3 * N)] * 2
    assert sum(points for *_, points, _ in made["ledger"]) == 2 * 3 * N
    return Undisturbed(made, seconds)


def moments(count: int, seed: int) -> list[float]:
    """Shares of the duration of a run, one from each `count`th of it."""
    draws = random.Random(seed)
    return [(number + draws.random()) / count for number in range(count)]


def named(points: Sequence[tuple[str, str]]) -> list[str]:
    return [" ".join(point).removeprefix("--") for point in points]


ENCODE_POINTS = [
    ("--before", "append:0"),
    ("--after", "append:2"),
    ("--before", "finish:0"),
    ("--after", "finish:0"),
    ("--before", "record_set:0"),
]
INGEST_POINTS = [
    ("--after", "append:3"),
    ("--before", "create:0"),
    ("--after", "create:1"),
    ("--before", "upsert:0"),
    ("--after", "upsert:11"),
    ("--before", "write_ledger:0"),
    ("--after", "write_ledger:3"),
    ("--before", "ready:1"),
    ("--before", "set_aliases:0"),
    ("--after", "set_aliases:0"),
    ("--after", "change:3"),
]


class TestEncode:
    @pytest.fixture
    def home(self, runner: Runner, tmp_path: Path) -> Path:
        assert runner.run("db", "upgrade", "--home", str(tmp_path)) == 0
        return tmp_path

    @pytest.mark.parametrize(("when", "point"), ENCODE_POINTS, ids=named(ENCODE_POINTS))
    def test_killed_at_a_point(
        self, runner: Runner, home: Path, corpus: Path, encoded: Undisturbed, when: str, point: str
    ) -> None:
        assert runner.run("--signal", "SIGKILL", when, point, *encoding(home, corpus)) == KILLED
        assert runner.run(*encoding(home, corpus)) == 0, runner.errors
        assert sets(home) == encoded.made

    @pytest.mark.parametrize("share", moments(3, seed=1), ids="{:.0%}".format)
    def test_killed_at_a_moment(
        self, runner: Runner, home: Path, corpus: Path, encoded: Undisturbed, share: float
    ) -> None:
        runner.kill(runner.start(*encoding(home, corpus)), share * encoded.seconds)
        assert runner.run(*encoding(home, corpus)) == 0, runner.errors
        assert sets(home) == encoded.made


class TestIngest:
    @pytest.mark.parametrize(("when", "point"), INGEST_POINTS, ids=named(INGEST_POINTS))
    def test_killed_at_a_point(
        self, runner: Runner, home: Path, corpus: Path, ingested: Undisturbed, when: str, point: str
    ) -> None:
        assert runner.run("--signal", "SIGKILL", when, point, *ingesting(home, corpus)) == KILLED
        assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
        assert everything(home) == ingested.made
        assert outcomes(home) == [("ingest", "killed"), ("ingest", "done")]

    @pytest.mark.parametrize("share", moments(50, seed=2), ids="{:.0%}".format)
    def test_killed_at_a_moment(
        self, runner: Runner, home: Path, corpus: Path, ingested: Undisturbed, share: float
    ) -> None:
        runner.kill(runner.start(*ingesting(home, corpus)), share * ingested.seconds)
        assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
        assert everything(home) == ingested.made

    def test_killed_again_and_again(self, runner: Runner, home: Path, corpus: Path, ingested: Undisturbed) -> None:
        for point in ("append:1", "append:2", "upsert:2", "upsert:7", "write_ledger:2", "set_aliases:0"):
            assert runner.run("--signal", "SIGKILL", "--before", point, *ingesting(home, corpus)) == KILLED
        assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
        assert everything(home) == ingested.made
        assert runner.run(*ingesting(home, corpus)) == 0
        assert everything(home) == ingested.made


INTERRUPTED_POINTS = [
    ("--before", "append:1"),
    ("--before", "upsert:5"),
    ("--after", "write_ledger:1"),
    ("--before", "set_aliases:0"),
]


class TestInterrupted:
    """Ctrl-C ends with 130, says so in one line, and is recorded."""

    def expect(self, runner: Runner, code: int, home: Path) -> None:
        assert code == 130, runner.errors
        assert "Traceback" not in runner.errors
        assert runner.errors.splitlines()[-1].startswith("interrupted; nothing is half written: run the same command")
        assert outcomes(home) in ([], [("ingest", "interrupted")], [("ingest", "done")])  # done, but not yet printed

    @pytest.mark.parametrize(("when", "point"), INTERRUPTED_POINTS, ids=named(INTERRUPTED_POINTS))
    def test_at_a_point(
        self, runner: Runner, home: Path, corpus: Path, ingested: Undisturbed, when: str, point: str
    ) -> None:
        self.expect(runner, runner.run("--signal", "SIGINT", when, point, *ingesting(home, corpus)), home)
        assert outcomes(home) == [("ingest", "interrupted")]
        assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
        assert everything(home) == ingested.made

    @pytest.mark.parametrize("share", [0.25, 0.5, 0.75], ids="{:.0%}".format)
    def test_at_a_moment(self, runner: Runner, home: Path, corpus: Path, ingested: Undisturbed, share: float) -> None:
        process = runner.start(*ingesting(home, corpus))
        process.join(share * ingested.seconds)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGINT)
        if (code := runner.finish(process)) != 0:  # it may have been done
            self.expect(runner, code, home)
        assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
        assert everything(home) == ingested.made


def test_a_second_command_waits_for_nobody(runner: Runner, home: Path, corpus: Path, ingested: Undisturbed) -> None:
    """While one process owns the store, another one ends at once with an error, and the first completes."""
    with EdgeStore(home / "qdrant"):
        assert runner.run(*ingesting(home, corpus)) == 1
        (line,) = [line for line in runner.errors.splitlines() if line.startswith("modalign: ")]
        assert "is in use by another process" in line
    assert runner.run(*ingesting(home, corpus)) == 0
    assert everything(home) == ingested.made
