"""A command that is killed at any of the named points and run again ends where an undisturbed one does."""

import signal
from collections.abc import Sequence
from itertools import cycle
from multiprocessing.context import ForkServerContext
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import delete, select

from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from connector.provenance.recorder import Provenance
from connector.provenance.tables import BatchRow, ReleaseRow, RunRow
from connector.releases.points import point_id
from connector.releases.tombstones import open_set
from connector.stores.edge import EdgeStore
from tests.support.databases import migrated
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.launcher import POINTS, REMOVAL_POINTS
from tests.support.runner import Runner
from tests.support.slow import slow_unless
from tests.support.sparse_copy import copy_sparse
from tests.support.world import stored

N = 40
KILLED = -signal.SIGKILL


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
    (home / "modalign.db").write_bytes(migrated())
    assert runner.run(*encoding(home, corpus)) == 0, runner.errors
    assert runner.run("fit", "pairs", "--alignment", "a", "--method", "ridge", "--home", str(home)) == 0, runner.errors
    return home


@pytest.fixture
def home(fitted: Path, tmp_path: Path) -> Path:
    return copy_sparse(fitted, tmp_path / "home")


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


@pytest.fixture(scope="module")
def encoded(runner: Runner, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("undisturbed")
    (home / "modalign.db").write_bytes(migrated())
    assert runner.run(*encoding(home, corpus)) == 0, runner.errors
    return sets(home)


@pytest.fixture(scope="module")
def ingested(runner: Runner, fitted: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = copy_sparse(fitted, tmp_path_factory.mktemp("undisturbed") / "home")
    assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
    made = everything(home)
    assert made["sets"]["things"][1] == {"image": N, "text": 2 * N}
    assert [(state, points) for _, state, points in made["releases"]] == [("live", 3 * N)] * 2
    assert sum(points for *_, points, _ in made["ledger"]) == 2 * 3 * N
    return made


def named(points: Sequence[tuple[str, str]]) -> list[str]:
    return [" ".join(point).removeprefix("--") for point in points]


def around(*points: str) -> list[tuple[str, str]]:
    """Before and after each point."""
    return [(when, point) for point in points for when in ("--before", "--after")]


ENCODE_POINTS = around("append:0", "append:2", "append:5", "finish:0", "record_set:0")
# Around each named point at its first call, and in turn before or after the ones that come often deeper within.
INGEST_POINTS = [
    *around(*(f"{point}:0" for point in POINTS)),
    ("--before", "append:3"),
    ("--after", "create:1"),
    ("--before", "upsert:5"),
    ("--after", "upsert:11"),
    ("--before", "flush:2"),
    ("--after", "write_ledger:3"),
    ("--before", "ready:1"),
    ("--after", "change:3"),
]
# One around each named point, in turn before and after it.
QUICK_POINTS = [(when, f"{point}:0") for when, point in zip(cycle(("--before", "--after")), POINTS, strict=False)]


class TestEncode:
    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        (tmp_path / "modalign.db").write_bytes(migrated())
        return tmp_path

    @pytest.mark.slow
    @pytest.mark.parametrize(("when", "point"), ENCODE_POINTS, ids=named(ENCODE_POINTS))
    def test_killed_at_a_point(
        self, runner: Runner, home: Path, corpus: Path, encoded: dict[str, Any], when: str, point: str
    ) -> None:
        assert runner.run("--signal", "SIGKILL", when, point, *encoding(home, corpus)) == KILLED
        assert runner.run(*encoding(home, corpus)) == 0, runner.errors
        assert sets(home) == encoded


class TestIngest:
    @pytest.mark.parametrize(
        ("when", "point"), slow_unless(QUICK_POINTS.__contains__, INGEST_POINTS), ids=named(INGEST_POINTS)
    )
    def test_killed_at_a_point(
        self, runner: Runner, home: Path, corpus: Path, ingested: dict[str, Any], when: str, point: str
    ) -> None:
        assert runner.run("--signal", "SIGKILL", when, point, *ingesting(home, corpus)) == KILLED
        assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
        assert everything(home) == ingested
        assert outcomes(home) == [("ingest", "killed"), ("ingest", "done")]

    @pytest.mark.slow
    def test_killed_again_and_again(self, runner: Runner, home: Path, corpus: Path, ingested: dict[str, Any]) -> None:
        for point in ("append:1", "append:2", "upsert:2", "upsert:7", "write_ledger:2", "set_aliases:0"):
            assert runner.run("--signal", "SIGKILL", "--before", point, *ingesting(home, corpus)) == KILLED
        assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
        assert everything(home) == ingested
        assert runner.run(*ingesting(home, corpus)) == 0
        assert everything(home) == ingested


INTERRUPTED_POINTS = [
    ("--before", "append:1"),
    ("--before", "upsert:5"),
    ("--after", "write_ledger:1"),
    ("--before", "set_aliases:0"),
]


class TestInterrupted:
    """Ctrl-C ends with 130, says so in one line, and is recorded."""

    @pytest.mark.slow
    @pytest.mark.parametrize(("when", "point"), INTERRUPTED_POINTS, ids=named(INTERRUPTED_POINTS))
    def test_at_a_point(
        self, runner: Runner, home: Path, corpus: Path, ingested: dict[str, Any], when: str, point: str
    ) -> None:
        code = runner.run("--signal", "SIGINT", when, point, *ingesting(home, corpus))
        assert code == 130, runner.errors
        assert "Traceback" not in runner.errors
        assert runner.errors.splitlines()[-1].startswith("interrupted")
        assert outcomes(home) == [("ingest", "interrupted")]
        assert runner.run(*ingesting(home, corpus)) == 0, runner.errors
        assert everything(home) == ingested


class TestKilledAndDamagedAtRandom:
    """Deletions, pushes and repairs that end anywhere, in a collection and a ledger that somebody else damages."""

    POINTS = (*POINTS.keys() - {"append", "create"}, *REMOVAL_POINTS)

    def command(self, draw: Random, home: Path, keys: Sequence[str]) -> list[str]:
        where = ["--home", str(home)]
        match draw.choice(["push", "repair", "delete"]):
            case "push":
                return ["push", "pairs", "--into", "things", "--alignment", "a", *where]
            case "repair":
                return ["repair", "things", "--yes", *where]
            case _:
                option = draw.choice(["--key", "--group"])  # an image alone, or with its captions
                named = [argument for key in keys for argument in (option, key)]
                return ["delete", "things", *named, "--yes", *where]

    def damage(self, draw: Random, home: Path) -> None:
        """Take points away, forget parts of the ledger, or neither."""
        kind = draw.choice(["points", "ledger", "whole ledger", "none"])
        if kind == "points":
            with EdgeStore(home / "qdrant") as store:
                (name,) = store.collections()
                ids = sorted(record.id for page in store.scroll(name) for record in page)
                store.delete(name, draw.sample(ids, 3))
        elif kind != "none":
            with (
                Provenance.open(f"sqlite:///{home / 'modalign.db'}", home=home) as provenance,
                provenance.database.session() as session,
            ):
                numbers = sorted(session.scalars(select(BatchRow.id)))
                chosen = numbers if kind == "whole ledger" else draw.sample(numbers, len(numbers) // 3)
                session.execute(delete(BatchRow).where(BatchRow.id.in_(chosen)))

    def rows(self, home: Path) -> set[str]:
        """The ids of the rows on disk, also of a set that a killed deletion has not counted again."""
        with Provenance.open(f"sqlite:///{home / 'modalign.db'}", home=home) as provenance:
            opened = open_set(provenance, home / "sets" / "pairs")
        return {point_id(m, key) for m in MODALITIES for keys, _ in opened.labels(m) for key in keys}

    def points(self, home: Path) -> set[str]:
        with EdgeStore(home / "qdrant") as store:
            (name,) = store.collections()
            return {record.id for page in store.scroll(name) for record in page}

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_no_live_item_is_lost(self, runner: Runner, home: Path, seed: int) -> None:
        draw = Random(seed)
        push = ["push", "pairs", "--into", "things", "--alignment", "a", "--home", str(home)]
        assert runner.run(*push) == 0, runner.errors
        requested: set[str] = set()
        for _ in range(4):
            self.damage(draw, home)
            rows, points = self.rows(home), self.points(home)
            keys = [f"s0-{number:05d}" for number in draw.sample(range(N), 2)]
            arguments = self.command(draw, home, keys)
            if arguments[0] == "delete":
                requested |= {point_id("image", key) for key in keys}
                if "--group" in arguments:
                    requested |= {point_id("text", f"{key}#{number}") for key in keys for number in (0, 1)}
            when, point = draw.choice(["--before", "--after"]), f"{draw.choice(self.POINTS)}:{draw.randrange(3)}"
            assert runner.run("--signal", "SIGKILL", when, point, *arguments) in (0, 1, KILLED)
            kept = rows - requested
            assert kept <= self.rows(home), (when, point, arguments)
            assert kept & points <= self.points(home), (when, point, arguments)
        if runner.run(*push):
            assert runner.run("repair", "things", "--yes", "--home", str(home)) == 0, runner.errors
        assert runner.run("repair", "things", "--yes", "--home", str(home)) == 0, runner.errors
        assert self.points(home) == self.rows(home)


def test_a_second_command_waits_for_nobody(runner: Runner, home: Path, corpus: Path, ingested: dict[str, Any]) -> None:
    """While one process owns the store, another one ends at once with an error, and the first completes."""
    with EdgeStore(home / "qdrant") as store:
        store.set_aliases({})  # the first write makes the store and owns it
        assert runner.run(*ingesting(home, corpus)) == 1
        (line,) = [line for line in runner.errors.splitlines() if line.startswith("modalign: ")]
        assert "is in use by another process" in line
    assert runner.run(*ingesting(home, corpus)) == 0
    assert everything(home) == ingested
