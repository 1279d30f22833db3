"""What the README prints works: every command and the Python example, in the demo's home."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import emoji
import pytest
from click.testing import CliRunner

from alignment.metrics import METRICS
from connector.cli.group import cli
from connector.demo import emoji as demo
from connector.settings import Settings

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [
    line for language, block in BLOCKS if not language for line in block.splitlines() if line[:9] == "modalign "
]
EVERY = 13  # of the 1,707 emoji


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a demo-home of a few emoji, among them the one that the README names."""
    directory = tmp_path_factory.mktemp("readme")
    few = dict(list(emoji.EMOJI_DATA.items())[::EVERY]) | {"🐶": emoji.EMOJI_DATA["🐶"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "EMOJI_DATA", few)
        patch.setattr(demo, "SERVED", [*METRICS, "dot+nnn(k=64)"])  # which so few have enough reference queries for
        demo.run_demo(Settings.load(home=directory / "demo-home"))
        yield directory


def test_the_readme_shows_every_command() -> None:
    assert set(cli.commands) <= {command.split()[1] for command in COMMANDS}


def test_every_command_works_as_printed(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(where)
    monkeypatch.setenv("MODALIGN_HOME", "demo-home")
    for command in COMMANDS:
        result = CliRunner().invoke(cli, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    assert (where / "found.html").stat().st_size > 10_000


def test_the_python_example_works(
    where: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(where)
    (example,) = [block for language, block in BLOCKS if language == "python"]
    exec(compile(example, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.count("(") == 3 for line in lines[:2])
    assert re.fullmatch(r"-\d\.\d+(e-\d+)? True", lines[2])
