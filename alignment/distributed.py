"""Several processes that train together under torch's own launcher.

    torchrun --nproc-per-node 4 --no-python modalign fit SET --alignment NAME

Each has a GPU of its own, or they share the CPU. All of them choose and train the same; the first one writes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def world_size() -> int:
    """How many processes torch's launcher has started, by its variable `WORLD_SIZE`; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, by the launcher's variable `RANK`; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def local_number() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group() -> Iterator[int]:
    """Join the processes of the launcher, and yield the number of this one, 0 where it is alone."""
    if world_size() == 1:
        yield 0
        return
    import torch

    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield rank()
    finally:
        torch.distributed.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process among those that have joined, and how many they are."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def broadcast(value: float) -> float:
    """Return what the first process found: choices must be the same in all, and floats may differ in the last bit."""
    if rank_and_world_size()[1] == 1:
        return value
    import torch

    on = f"cuda:{local_number()}" if torch.distributed.get_backend() == "nccl" else "cpu"
    shared = torch.tensor([value], dtype=torch.float64, device=on)
    torch.distributed.broadcast(shared, 0)
    return float(shared)


def all_reduce(tensor: "Tensor") -> "Tensor":
    """Add up a tensor over all processes, in place."""
    if rank_and_world_size()[1] > 1:
        import torch

        torch.distributed.all_reduce(tensor)
    return tensor


def rank_slices(size: int) -> list[slice]:
    """Which rows of a batch each process computes.

    >>> rank_slices(7)
    [slice(0, 7, None)]
    """
    count = rank_and_world_size()[1]
    return [slice(size * number // count, size * (number + 1) // count) for number in range(count)]


def all_gather(own: "Tensor", size: int) -> "Tensor":
    """Put the rows of all processes together (size, d)."""
    if rank_and_world_size()[1] == 1:
        return own
    import torch

    parts = [own.new_empty(share.stop - share.start, own.shape[1]) for share in rank_slices(size)]
    # Parts may differ by a row, which gathering into one tensor does not allow.
    for number, part in enumerate(parts):
        if number == rank_and_world_size()[0]:
            part.copy_(own)
        torch.distributed.broadcast(part, number)
    return torch.cat(parts)
