"""Collectives of several processes that train together under torch's own launcher.

    torchrun --nproc-per-node 4 --no-python modalign fit SET --alignment NAME

Each process has a GPU of its own, or they share the CPU. All processes compute the same result; rank 0 writes it.
"""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]


def world_size() -> int:
    """Return how many processes torch's launcher started (its variable `WORLD_SIZE`); 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank that the launcher gave this process (its variable `RANK`); 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the rank of this process among those on its machine (`LOCAL_RANK`); 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group() -> Iterator[int]:
    """Join the launcher's processes for the block, and yield the rank of this one; 0 without a launcher.

    When the block ends, also by an error, nothing refers to the process group any more, so its threads end here. A
    gloo thread that frees a tensor while Python shuts down would abort the process.
    """
    if world_size() == 1:
        yield 0
        return
    # The functions of this module take the current process group as a default argument. Imported after the group
    # exists (torch's optimizers import it), they would keep the group alive; so it is imported before.
    import torch.distributed.nn.functional

    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield rank()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # the frames of a failed collective refer to the group
        raise
    finally:
        torch.distributed.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process in the group and the size of the group; (0, 1) outside `process_group`."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def broadcast(value: float) -> float:
    """Return the value of rank 0 in every process.

    Floats may differ in the last bit between processes, and a choice that depends on them must be the same in all.
    """
    return float(broadcast_array(np.array([value]))[0])


def broadcast_array(values: Floats) -> Floats:
    """Return the numbers of rank 0 in every process, as `broadcast` does."""
    if rank_and_world_size()[1] == 1:
        return values
    import torch

    device = f"cuda:{local_rank()}" if torch.distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.broadcast(tensor, 0)
    agreed: Floats = tensor.cpu().numpy()
    return agreed


def all_reduce(tensor: "Tensor") -> "Tensor":
    """Sum a tensor over all processes, in place, and return it."""
    if rank_and_world_size()[1] > 1:
        import torch

        torch.distributed.all_reduce(tensor)
    return tensor


def rank_slices(size: int) -> list[slice]:
    """Return the rows of a batch of `size` rows that each rank computes.

    >>> rank_slices(7)
    [slice(0, 7, None)]
    """
    count = rank_and_world_size()[1]
    return [slice(size * number // count, size * (number + 1) // count) for number in range(count)]


def all_gather(own: "Tensor", size: int) -> "Tensor":
    """Concatenate the rows of all processes to (size, d).

    Args:
        own: the rows of this process, those of its slice in `rank_slices(size)`.
    """
    own_rank, count = rank_and_world_size()
    if count == 1:
        return own
    import torch

    parts = [own.new_empty(rows.stop - rows.start, own.shape[1]) for rows in rank_slices(size)]
    # torch's all_gather needs parts of equal size; these may differ by a row, so every rank broadcasts its own.
    for source, part in enumerate(parts):
        if source == own_rank:
            part.copy_(own)
        torch.distributed.broadcast(part, source)
    return torch.cat(parts)
