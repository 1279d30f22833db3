"""Embedded stores in tests: a layout, points, and processes that die while they write."""

import json
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from alignment.metrics import Distance
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.points import Points

N, DIM = 100, 4
LAYOUT = CollectionConfig(
    {"v": VectorConfig(DIM, Distance.EUCLID), "w": VectorConfig(3, Distance.COSINE)},
    payload_indexes={"number": "integer"},
    metadata={"chain": {"alignment": "abc", "name": "Ümläut"}},
    m=8,
    ef_construct=50,
    indexing_threshold=123,
)


def ids(n: int) -> list[str]:
    return [str(UUID(int=i + 1)) for i in range(n)]


def batch(n: int = N) -> Points:
    vectors = np.arange(n * DIM, dtype=np.float32).reshape(n, DIM)
    return Points("v", ids(n), vectors, [{"number": i} for i in range(n)])


def registry(path: Path) -> Any:
    return json.loads((path / "registry.json").read_text(encoding="utf-8"))


def tree(path: Path) -> dict[str, bytes | None]:
    """All there is under `path`: the content of small files, the size of others, None of directories."""
    return {
        str(place.relative_to(path)): None
        if place.is_dir() and not place.is_symlink()
        else place.read_bytes()
        if place.is_file() and place.stat().st_size < 1 << 20
        else str(place.lstat().st_size).encode()
        for place in sorted(path.rglob("*"))
    }


def died(processes: ForkServerContext, crash: Callable[..., None], *arguments: Any) -> None:
    """Let a child run `crash`, which kills it."""
    assert exit_code(processes, crash, *arguments) == -signal.SIGKILL


def exit_code(processes: ForkServerContext, target: Callable[..., None], *arguments: Any) -> int | None:
    child = processes.Process(target=target, args=arguments, daemon=True)
    child.start()
    child.join(60)
    return child.exitcode


def kill_me(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
