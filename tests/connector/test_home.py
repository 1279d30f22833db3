"""A fit that is killed anywhere can be repeated, and takes nothing for its own that is somebody else's."""

import os
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.errors import AlignmentError
from alignment.fitting import fit as fitting
from alignment.model import alignment as alignments
from alignment.model.alignment import Alignment
from connector.home import Home
from connector.provenance.artifacts import Artifacts
from connector.provenance.database import upgrade
from connector.requests import FitRequest
from connector.settings import Settings
from tests.support.errors import raises
from tests.support.fakes import fake_rows, fake_set

FIT = FitRequest(sets=["pairs"], alignment="a", method="procrustes")
# Where a fit is killed: before this function is called for the nth time, from 0.
POINTS: dict[str, tuple[Any, str, int]] = {
    "while it fits": (fitting, "fit", 0),
    "before a file is written": (alignments, "write_durably", 0),
    "between two files": (alignments, "write_durably", 1),
    "before the directory is in its place": (Path, "rename", 0),
    "before SQL knows it": (Artifacts, "record_alignment", 0),
}


def settings(home: Path) -> Settings:
    return Settings.load(home=home)


def killed(home: Path, point: str) -> None:
    """Fit, and die at the point."""
    owner, name, calls = POINTS[point]
    original = getattr(owner, name)

    def armed(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if not calls:
            os.kill(os.getpid(), signal.SIGKILL)
        calls -= 1
        return original(*arguments, **options)

    setattr(owner, name, armed)
    with Home(settings(home)) as opened:
        opened.fit(FIT)


def kill_a_fit(processes: ForkServerContext, home: Path, point: str) -> None:
    child = processes.Process(target=killed, args=(home, point), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.fixture
def home(tmp_path: Path, rng: np.random.Generator) -> Path:
    upgrade(settings(tmp_path).database_url)
    X = rng.standard_normal((40, 6))
    Y = X @ rng.standard_normal((6, 6)) + 0.3 * rng.standard_normal((40, 6))
    fake_set(tmp_path / "sets" / "pairs", fake_rows("image", X), fake_rows("text", Y))
    return tmp_path


def left(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "alignments").iterdir())


class TestFit:
    @pytest.mark.parametrize("point", POINTS)
    def test_the_same_command_works_after_a_kill_and_clears_up(
        self, point: str, home: Path, processes: ForkServerContext
    ) -> None:
        kill_a_fit(processes, home, point)
        with Home(settings(home)) as opened:
            result = opened.fit(FIT)
            assert result.counts["pairs"] == result.value.card.pairs > 0
            assert Alignment.load(home / "alignments" / "a").fingerprint == result.value.fingerprint
            assert [run.outcome for run in opened.provenance.runs.newest(2)] == ["done", "killed"]
            row = opened.provenance.artifacts.alignment(1)
            assert (row.name, row.fingerprint) == ("a", result.value.fingerprint)
        assert left(home) == ["a"]

    def test_one_that_ended_well_is_never_made_again(self, home: Path) -> None:
        with Home(settings(home)) as opened:
            opened.fit(FIT)
            for _ in range(2):
                with raises(AlignmentError, "a", "--alignment"):
                    opened.fit(FIT)

    def test_another_fit_does_not_take_what_a_killed_one_left(self, home: Path, processes: ForkServerContext) -> None:
        kill_a_fit(processes, home, "before SQL knows it")
        other = FitRequest(sets=["pairs"], alignment="a", method="procrustes", seed=1)
        with Home(settings(home)) as opened, raises(AlignmentError, "a", "--alignment"):
            opened.fit(other)

    def test_nor_one_of_a_set_that_has_changed(
        self, home: Path, processes: ForkServerContext, rng: np.random.Generator
    ) -> None:
        kill_a_fit(processes, home, "before SQL knows it")
        grown = [fake_rows(modality, rng.standard_normal((50, 6))) for modality in ("image", "text")]
        for shard in (home / "sets" / "pairs").iterdir():
            shard.unlink()
        fake_set(home / "sets" / "pairs", *grown)
        with Home(settings(home)) as opened, raises(AlignmentError, "a", "--alignment"):
            opened.fit(FIT)

    def test_what_people_left_beside_it_stays(self, home: Path, processes: ForkServerContext) -> None:
        kill_a_fit(processes, home, "between two files")
        own = [".a.tmp", ".a.old.tmp", ".a.0123456789abcdef.tmp", ".ab." + "0" * 32 + ".tmp", "a.tmp"]
        for name in own:
            (home / "alignments" / name).mkdir()
        with Home(settings(home)) as opened:
            opened.fit(FIT)
        assert left(home) == sorted([*own, "a"])
