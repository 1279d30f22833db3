"""One `--device` option for everything that computes with torch."""

from typing import TYPE_CHECKING

from alignment.distributed import local_rank, world_size
from alignment.errors import DeviceError
from alignment.packages import missing_package

if TYPE_CHECKING:
    import torch


def resolve(device: str = "auto") -> "torch.device":
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a torch device; `auto` picks the fastest available one.

    Raises:
        DeviceError: no such device is known, or it is not available on this machine.
        MissingPackageError: torch is not installed.

    >>> resolve("cpu")
    device(type='cpu')
    """
    try:
        import torch  # imported here: it takes a second, and `--help` must be quick
    except ImportError as error:
        raise missing_package(error, "computing on a device") from error

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank()) if world_size() > 1 else torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"expected --device auto, cpu, cuda, cuda:N or mps, got {device!r}") from error
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (resolved.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(resolved.type, False):
        raise DeviceError(f"--device {device} is not available on this machine; use --device auto or cpu")
    return resolved


def check(device: str) -> None:
    """Raise what `resolve` would raise about `device`. torch is imported only where it has to be asked."""
    if device not in ("auto", "cpu"):
        resolve(device)
