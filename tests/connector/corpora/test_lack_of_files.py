"""A process that may open no more files: sound rows are no rejects, the run ends and says why."""

import io
import os
import resource
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from connector.corpora.formats import open_corpus
from connector.errors import OutOfResourcesError
from tests.support.errors import raises


@contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(int(place.name) for place in Path("/proc/self/fd").iterdir()) + 1, hard)
        )
        while True:  # the gaps below the limit
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


def folder(path: Path) -> Path:
    (path / "a.jpg").write_bytes(b"not opened by a reader")
    (path / "a.txt").write_text("a caption")
    return path


def archive(path: Path) -> Path:
    with tarfile.open(path / "a.tar", "w") as tar:
        for name, content in (("1.jpg", b"picture"), ("1.txt", b"a caption")):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path / "a.tar"


@pytest.mark.parametrize("make", [folder, archive])
def test_a_reader_refuses_no_row_for_it(make: object, tmp_path: Path) -> None:
    assert callable(make)
    corpus = open_corpus(make(tmp_path))
    assert len(list(corpus)) == 2
    with no_more_files(), raises(OutOfResourcesError, "Too many open files"):
        list(corpus)
