"""Standard streams that are closed, full, or read by nobody: no tracebacks, and the right exit codes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.rejects import Reason, Reject
from connector.settings import Settings

MODALIGN = [sys.executable, "-m", "connector.cli.main"]


def shell(redirection: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `modalign ARGUMENTS` with its streams redirected by a shell. A pipe does not change the exit code."""
    command = f"set -o pipefail; {shlex.join([*MODALIGN, *map(str, arguments)])} {redirection}"
    encoding = environment.get("PYTHONIOENCODING", "utf-8").replace("ascii", "utf-8")  # which click prints instead
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, encoding=encoding, check=False, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    url = Settings.load(home=home).database_url
    upgrade(url)
    with Provenance.open(url) as provenance, provenance.runs.start("encode", {"corpus": "caf\udce9 é 🎉"}):
        pass
    return home


@pytest.mark.slow
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", ">&- <&-"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"], ["status"], ["status", "--json"]])
def test_a_stdout_that_cannot_be_written_is_a_failure(redirection: str, arguments: list[str], home: Path) -> None:
    at_home = ["--home", home] if arguments[0] == "status" else []
    ended = shell(redirection, *arguments, *at_home)
    assert ended.returncode == 1
    assert ended.stderr.startswith("modalign: ")
    assert ended.stderr.count("\n") == 1
    upgrade(Settings.load(home=home).database_url)  # nothing was printed into the database


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- <&-"])
@pytest.mark.parametrize(("arguments", "code"), [(["rejects", "--json"], 0), (["rejects", "7"], 1), (["nothing"], 2)])
def test_a_stderr_that_cannot_be_written_changes_no_exit_code(
    redirection: str, arguments: list[str], code: int, home: Path
) -> None:
    ended = shell(redirection, *arguments, *(["--home", home] if code != 2 else []))
    assert (ended.returncode, ended.stderr) == (code, "")
    assert json.loads(ended.stdout) == {"run": None, "rejects": []} if code == 0 else ended.stdout == ""


def test_nobody_to_ask_behind_a_closed_stdin(home: Path) -> None:
    ended = shell("<&-", "delete", "c", "--key", "a", "--home", home)
    assert (ended.returncode, ended.stderr.splitlines()[-1].startswith("Error: ")) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["status", "--json"]])
def test_a_reader_that_leaves_is_no_crash(arguments: list[str], home: Path) -> None:
    ended = shell("| true", *arguments, *(["--home", home] if arguments[0] == "status" else []))
    assert ended.returncode in (0, 1)  # 0 where the pipe took everything before its reader left
    assert ended.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_every_character_is_printed_whatever_the_encoding(encoding: str, tmp_path: Path) -> None:
    home = tmp_path / "é 🎉"
    url = Settings.load(home=home).database_url
    upgrade(url)
    with Provenance.open(url) as provenance, provenance.runs.start("encode", {"corpus": "caf\udce9 é 🎉"}) as run:
        run.reject(Reject("é 🎉.jsonl", 1, "read", Reason.IMAGE_MISSING, "é 🎉", "caf\udce9"))
    tables, documents = (["status"], ["rejects"]), (["status", "--json"], ["rejects", "--json"])
    for arguments in (*tables, *documents, ["rejects", "--export", "-"]):
        ended = shell("", *arguments, "--home", home, PYTHONIOENCODING=encoding)
        assert (ended.returncode, ended.stderr) == (0, "")
        if arguments not in tables:
            shown = json.loads(ended.stdout)
    assert shown["detail"] == "é 🎉"


def test_a_home_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    command = f"{shlex.join(MODALIGN)} db upgrade --home {shlex.quote(str(tmp_path))}/$'caf\\xe9'"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.endswith(b"[settings]\n")
    assert ended.stderr.count(b"\n") == 1
