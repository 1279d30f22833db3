"""Which executor `--on`, `--workers` and `--gpus-per-worker` ask for."""

import math
import re
from dataclasses import dataclass
from typing import Self

from alignment.plurals import counted
from connector.errors import SettingsError

LOCAL = "local"
AUTO = "auto"
FORMS = "local, local:N with N processes from 1 to 99999, ray://HOST:PORT, or auto"

_PROCESSES = re.compile(r"local:0*([1-9]\d{0,4})", re.ASCII)
_ADDRESS = re.compile(r"ray://(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})", re.ASCII)
_WORKERS = re.compile(r"(\d{1,5}):(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where tasks are worked on, and by how many workers.

    Attributes:
        on: the value of `--on`.
        min_workers: as many have to be there; 1 to `max_workers`.
        max_workers: no more are started; None: as many as there is room for.
        gpus_per_worker: share of a GPU, 0 to 1, or whole GPUs.
    """

    on: str = LOCAL
    min_workers: int = 1
    max_workers: int | None = None
    gpus_per_worker: float = 0.0

    @classmethod
    def parse(cls, on: str, *, workers: str | None = None, gpus_per_worker: float = 0.0) -> Self:
        """Read the values of the options. Nothing is connected.

        >>> Placement.parse("ray://head:10001", workers="2:8", gpus_per_worker=0.5)
        Placement(on='ray://head:10001', min_workers=2, max_workers=8, gpus_per_worker=0.5)

        Raises:
            SettingsError: one of them is malformed, is given for `local`, which has no workers, or asks for more
                of them than `local:N` has processes.
        """
        if on not in (LOCAL, AUTO) and not _PROCESSES.fullmatch(on) and not _is_address(on):
            raise SettingsError(f"--on {on!r}: expected {FORMS}", code="on")
        least, most = _worker_counts(workers)
        if not _is_gpu_share(gpus_per_worker):
            raise SettingsError(
                f"--gpus-per-worker {gpus_per_worker:g}: expected a share of one GPU, from 0 to 1 in steps of 0.0001, "
                "or a whole number of GPUs",
                code="gpus-per-worker",
            )
        if on == LOCAL and (workers is not None or gpus_per_worker):
            option = "gpus-per-worker" if workers is None else "workers"
            raise SettingsError(
                f"--{option} needs workers, and --on local has none: the work is done in this process; give --on "
                "local:N, ray://HOST:PORT or auto, or leave the option out",
                code=option,
            )
        placement = cls(on, least, most, gpus_per_worker)
        if placement.processes and (most or 0) > placement.processes:
            raise SettingsError(
                f"--workers {workers!r}: --on {on} has {counted(placement.processes, 'process')}, one a worker; "
                f"expected a MAX of at most {placement.processes}, or --on local:{most}",
                code="workers",
            )
        return placement

    @property
    def processes(self) -> int | None:
        """Number of processes to start on this machine; None where `on` asks for none."""
        match = _PROCESSES.fullmatch(self.on)
        return int(match[1]) if match else None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of a cluster; None where `on` names none."""
        match = _ADDRESS.fullmatch(self.on)
        return (match["host"].strip("[]"), int(match["port"])) if match else None


def _is_address(on: str) -> bool:
    match = _ADDRESS.fullmatch(on)
    return match is not None and 1 <= int(match["port"]) <= 65535


def _worker_counts(workers: str | None) -> tuple[int, int | None]:
    if workers is None:
        return 1, None
    match = _WORKERS.fullmatch(workers)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise SettingsError(f"--workers {workers!r}: expected MIN:MAX with 1 <= MIN <= MAX, as 1:8", code="workers")
    return int(match[1]), int(match[2])


def _is_gpu_share(gpus: float) -> bool:
    return math.isfinite(gpus) and gpus >= 0 and (gpus == round(gpus, 4) if gpus <= 1 else gpus == int(gpus))
