"""How commands end."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from connector.cli.failures import exit_code
from tests.support.cli import COMMANDS, SPECS, done, modalign
from tests.support.fakes import fake_pairs, write_manifest

ROOT = Path(__file__).parents[3]


class TestExitCodes:
    """Through a process of their own, because that is what scripts see."""

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.support.launcher", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    @pytest.mark.slow
    def test_done_and_usage(self, shared: Path) -> None:
        assert self.run("status", "--home", shared).returncode == 0
        ended = self.run("search", "things", "--home", shared)
        assert (ended.returncode, "Missing argument 'QUERY'" in ended.stderr) == (2, True)
        ended = self.run("search", "things", "red", "--metric", "hamming", "--home", shared)
        assert (ended.returncode, "unknown metric 'hamming'" in ended.stderr) == (2, True)

    @pytest.mark.slow
    def test_failed(self, shared: Path) -> None:
        ended = self.run("search", "nothing", "red", "--home", shared)
        assert ended.returncode == 1
        assert ended.stderr.startswith("modalign: no live release of collection 'nothing'")
        assert ended.stderr.count("\n") == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("method", "statement"),
        [
            ("prepare", "raise SystemExit(0)"),
            ("forward", "raise SystemExit(0)"),
            ("forward", "raise ValueError('a\\x1b[2J\\nb')"),
        ],
    )
    def test_an_encoder_of_your_own_that_fails(
        self, method: str, statement: str, home: Path, corpus: Path, tmp_path: Path
    ) -> None:
        """One that ends the process with success would be taken for a set that is complete."""
        (tmp_path / "encs.py").write_text(
            "from tests.support.fakes import FakeImageEncoder\n"
            f"class Mine(FakeImageEncoder):\n    def {method}(self, *_):\n        {statement}\n",
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "connector.cli.main", "encode", corpus, "--set", "mine", "--home", home]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        ended = subprocess.run(
            [*map(str, command), "--image-encoder", "encs:Mine"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        assert "\x1b" not in ended.stderr
        said = ended.stderr.splitlines()[-1]
        assert (said.startswith("modalign: encoder encs:Mine "), said.endswith(("[encoder]", "[embed]"))) == (
            True,
            True,
        ), said

    @pytest.mark.slow
    def test_a_requirement_that_is_not_met(self, shared: Path) -> None:
        ended = self.run("audit", "things", "--pairs", "pairs", "--require", "recall@1>1", "--home", shared)
        assert ended.returncode == 3
        assert "not met: recall@1>1: text-to-image recall@1 is " in ended.stderr

    @pytest.mark.slow
    def test_interrupted(self, home: Path, corpus: Path) -> None:
        arguments = ("ingest", corpus, "--into", "new", "--alignment", "a", "--home", home)
        ended = self.run("--signal", "SIGINT", "--before", "upsert:3", *arguments)
        assert ended.returncode == 130
        assert ended.stderr.splitlines()[-1].startswith("interrupted; nothing is half written")
        assert "Traceback" not in ended.stderr
        (run,) = done("status", "-n", 1, "--json", "--home", home).document["runs"]
        assert (run["outcome"], run["command"], run["error"]) == ("interrupted", "ingest", "")
        assert done(*arguments).code == 0

    @pytest.mark.parametrize("module", ["connector.cli.main", "click", "alignment.errors"])
    def test_interrupted_before_everything_is_imported(self, module: str) -> None:
        program = f"""
import sys
sys.argv = ["modalign", "status"]
class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from connector.cli.entry import main
main()
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (130, "")
        (line,) = filter(None, ended.stderr.splitlines())
        assert line.startswith("interrupted")

    @pytest.mark.slow
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
            assert (ended.code, "2 rejects; see `modalign rejects " in ended.err) == (code, True)
            assert (f"the exit code is {code}, because --max-rejects is" in ended.err) == bool(code)


FAILING: dict[tuple[str, ...], str] = {
    ("db", "upgrade"): "db upgrade --database-url sqlite:////no/such/directory/x.db",
    ("db", "merge-stores"): "db merge-stores http://no.such:6333",
    ("encode",): "encode /no/such/corpus.jsonl --set bad --text-encoder fake-text:small",
    ("sets",): "sets nothing",
    ("fit",): "fit nothing --alignment b",
    ("alignments",): "alignments nothing",
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
    ("verify",): "verify nothing",
    ("repair",): "repair nothing --yes",
    ("status",): "status --database-url sqlite:////no/such/directory/x.db",
    ("rejects",): "rejects 4711",
    ("demo",): "demo --database-url sqlite:////no/such/directory/x.db",
}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_that_fails_ends_with_0(unbroken: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    home = tmp_path if words == ("demo",) else unbroken
    (tmp_path / "file").touch()
    arguments = FAILING[words].replace("/no/such/directory", str(tmp_path / "file")).split()
    assert modalign(*arguments, "--home", home).code in (1, 2)


TWICE = """
import os, signal
from connector import progress
from connector.cli import main

def interrupted(**_):
    raise KeyboardInterrupt

main.cli.main = interrupted
progress.say = lambda line: os.kill(os.getpid(), signal.SIGINT)
main.main()
"""


def test_a_second_ctrl_c_while_the_first_is_told_changes_nothing() -> None:
    ended = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_what_a_storage_forbids_has_its_code_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    forbidden = PermissionError(errno.EACCES, "the storage does not permit it", "s3://bucket/home/sets")
    assert exit_code(forbidden) == 1
    said = capsys.readouterr().err
    assert "s3://bucket/home/sets" in said
    assert said.endswith("[storage-denied]\n")
    assert exit_code(PermissionError(errno.EACCES, "Permission denied", "/home")) == 1
    assert capsys.readouterr().err.endswith("'/home' [os-error]\n")
