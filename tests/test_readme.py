"""What README and tour print works: every command and the Python example, in the demo's home."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import emoji
import pytest
from click.testing import CliRunner

from alignment.fitting import fit
from connector.cli.main import cli
from connector.demo import emoji as demo
from connector.encoding.loading import load_encoders
from connector.settings import Settings
from tests.support.torch_operators import operators_read_once

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """The commands that a page prints, with or without their output."""
    lines = [line for language, block in BLOCK.findall(page) if language != "python" for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?modalign ", line)]


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    dead = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert not dead


EVERY = 27  # of the emoji: few, and enough held-out ones for every command
NAMED = "🐶🐺"  # in commands


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a demo-home of a few emoji, among them the one that pages name, and of the metrics they name."""
    directory = tmp_path_factory.mktemp("readme")
    few = dict(list(emoji.EMOJI_DATA.items())[::EVERY]) | {name: emoji.EMOJI_DATA[name] for name in NAMED}
    with pytest.MonkeyPatch.context() as patch, operators_read_once():
        held = load_encoders(demo.ENCODERS)  # a process holds an encoder as long as somebody uses it
        patch.setattr(emoji, "EMOJI_DATA", few)
        patch.setattr(demo, "SERVED", ["cosine", "chi2", "js"])
        with patch.context() as fitting:
            fitting.setattr(fit, "METHODS", ("ridge",))
            demo.run_demo(Settings.load(home=directory / "demo-home"))
        yield directory
        del held


def test_the_tour_shows_every_command() -> None:
    assert set(cli.commands) == {command.split()[1] for command in commands(TOUR)}


def test_the_readme_is_short_and_shows_what_its_commands_print() -> None:
    assert len(README.splitlines()) <= 150
    for language, block in BLOCK.findall(README):
        if language == "console":
            printed = [line for line in block.splitlines() if line and not line.startswith("$ ")]
            assert printed, block


@pytest.mark.parametrize("page", [README, TOUR], ids=["README", "tour"])
def test_every_command_works_as_printed(page: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(where)
    monkeypatch.setenv("MODALIGN_HOME", "demo-home")
    for command in commands(page):
        result = CliRunner().invoke(cli, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    if page is TOUR:
        assert (where / "found.html").stat().st_size > 10_000


def test_the_python_example_works(
    where: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(where)
    (example,) = [block for language, block in BLOCK.findall(README) if language == "python"]
    exec(compile(example, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.count("(") == 3 for line in lines[:2])
    assert re.fullmatch(r"-\d\.\d+(e-\d+)? True", lines[2])
