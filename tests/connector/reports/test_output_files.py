"""Output files: on a disk that is full, on devices, through links, and after a process that was killed."""

import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from connector.errors import OutputError
from connector.reports.output_files import LEFTOVER_SECONDS, append_line, write_file
from tests.support.errors import raises
from tests.support.memory import memory

FILLED = 4096  # bytes that fit on the disk of `on_a_full_disk`


def on_a_full_disk(call: str) -> subprocess.CompletedProcess[str]:
    """Run a call of the module in a process whose files cannot grow beyond `FILLED` bytes."""
    return subprocess.run(
        [sys.executable, "-c", f"from connector.reports.output_files import *; {call}"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILLED, FILLED)),
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("room", [0, 1, 50, 99])
def test_a_line_that_does_not_fit_leaves_nothing(room: int, tmp_path: Path) -> None:
    path, before = tmp_path / "log.jsonl", b"x" * (FILLED - room - 1) + b"\n"
    path.write_bytes(before)
    ended = on_a_full_disk(f"append_line(Path({str(path)!r}), 'y' * 99)")
    assert ended.stderr.splitlines()[-1].startswith(f"connector.errors.OutputError: {path} cannot be appended to: ")
    assert path.read_bytes() == before


def test_a_line_begins_a_line_of_its_own_behind_half_of_another(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"whole": 1}\n{"hal')
    for line in ("{}", '{"é": "\udce9"}'):
        append_line(path, line)
    assert path.read_bytes() == '{"whole": 1}\n{"hal\n{}\n{"é": "\\udce9"}\n'.encode()


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    ended = on_a_full_disk(f"write_file(Path({str(path)!r}), 'new' * {FILLED})")
    assert ended.stderr.splitlines()[-1].startswith(f"connector.errors.OutputError: {path} cannot be written: ")
    assert path.read_text() == "old"


def test_a_device_that_takes_nothing_is_an_error_and_stays_a_device(tmp_path: Path) -> None:
    device = tmp_path / "full"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        device.open("wb").close()
    except OSError as error:
        pytest.skip(f"needs a device file: {error}")
    for text in ("text", ""):
        with raises(OutputError, device, "No space left"):
            write_file(device, text)
    with raises(OutputError, device):
        append_line(device, "text")
    assert device.is_char_device()


def test_a_file_of_the_user_with_a_name_near_to_it_stays_as_it_is(tmp_path: Path) -> None:
    near = [tmp_path / name for name in ("page.html.tmp", ".page.html.tmp", ".modalign.old.tmp", "page.html~")]
    for path in near:
        path.write_text("mine")
        os.utime(path, (0, 0))
    write_file(tmp_path / "page.html", "text")
    assert [path.read_text() for path in near] == ["mine"] * len(near)
    assert len(list(tmp_path.iterdir())) == len(near) + 1


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o444])
def test_a_file_that_is_replaced_keeps_who_may_read_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    path.chmod(mode)
    write_file(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


def test_several_processes_that_write_one_file_leave_the_whole_text_of_one(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write = "from connector.reports.output_files import *; [write_file(Path({!r}), {!r} * 20_000) for _ in range(200)]"
    writers = [
        subprocess.Popen([sys.executable, "-c", write.format(str(path), letter)], stderr=subprocess.PIPE)
        for letter in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        assert not path.exists() or set(path.read_text()) in ({"a"}, {"b"})
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    assert len(path.read_text()) == 20_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(("age", "left"), [(2 * LEFTOVER_SECONDS, 0), (60, 1)])
def test_what_a_killed_process_left_is_removed_once_nobody_can_be_writing_it(
    tmp_path: Path, age: float, left: int
) -> None:
    kill = (
        "from connector.reports.output_files import *; import os, signal; "
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); "
        f"write_file(Path({str(tmp_path / 'page.html')!r}), 'half')"
    )
    assert subprocess.run([sys.executable, "-c", kill], check=False).returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    os.utime(leftover, (time.time() - age,) * 2)
    write_file(tmp_path / "page.html", "whole")
    assert (tmp_path / "page.html").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1 + left


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to(tmp_path / "disk" / "real.html")
    write_file(tmp_path / "link.html", "new")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "disk" / "real.html").read_text() == "new"


@pytest.mark.skipif(memory(FILLED) is None, reason="needs a file system in memory, /dev/shm")
def test_a_file_in_memory_is_replaced_as_on_a_disk() -> None:
    with tempfile.TemporaryDirectory(dir=memory(FILLED)) as directory:
        path = Path(directory) / "page.html"
        for text in ("old", "new"):
            write_file(path, text)
            assert path.read_text() == text


def test_a_stdout_that_is_a_file_keeps_what_is_printed_before_and_after(tmp_path: Path) -> None:
    write = "from connector.reports.output_files import *; write_file(Path('/dev/stdout'), 'text ')"
    command = f'printf "before "; {sys.executable} -c "{write}"; printf after'
    with (tmp_path / "out").open("ab") as out:
        subprocess.run(["sh", "-c", command], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before text after"
