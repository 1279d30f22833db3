"""Commands that write a directory, killed in a process of their own: what they leave, and that they can be repeated."""

import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.support.runner import Runner

KILLED = -signal.SIGKILL
COMPARE = ("compare", "pairs", "--method", "ridge", "--metric", "cosine", "--folds", "2")
EXPORT = ("export", "a", "--metric", "cosine")


@pytest.fixture(scope="module")
def runner(processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(processes, tmp_path_factory.mktemp("output") / "last")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "point", "files"),
    [  # while a file is written, and when all files are
        (COMPARE, "sync:1", {"compare.html", "compare.json", "heatmap.svg"}),
        (COMPARE, "rename:0", {"compare.html", "compare.json", "heatmap.svg"}),
        (EXPORT, "sync:1", {"image-item.onnx", "text-query.onnx", "request.json", "example.py"}),
    ],
    ids=["compare within", "compare at the end", "export within"],
)
def test_killed_before_it_is_whole_a_directory_is_written_by_the_same_command(
    runner: Runner, shared: Path, tmp_path: Path, command: tuple[str, ...], point: str, files: set[str]
) -> None:
    arguments = (*command, "--to", str(tmp_path / "to"), "--home", str(shared))
    assert runner.run("--signal", "SIGKILL", "--before", point, *arguments) == KILLED
    assert not (tmp_path / "to").exists()
    assert any(path.is_dir() for path in tmp_path.iterdir())  # the half of it, under a hidden name
    assert runner.run(*arguments) == 0, runner.errors
    assert [path.name for path in tmp_path.iterdir()] == ["to"]
    assert {path.name for path in (tmp_path / "to").iterdir()} >= files


def test_killed_once_it_is_whole_a_directory_is_kept_by_the_same_command(
    runner: Runner, shared: Path, tmp_path: Path
) -> None:
    arguments = (*COMPARE, "--to", str(tmp_path / "to"), "--home", str(shared))
    assert runner.run("--signal", "SIGKILL", "--after", "rename:0", *arguments) == KILLED
    before = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    assert runner.run(*arguments) == 1
    assert f"{tmp_path / 'to'} is not empty" in runner.errors
    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["to"]
