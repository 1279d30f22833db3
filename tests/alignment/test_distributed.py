"""Collectives: what processes under torch's launcher exchange, and what they leave behind."""

from pathlib import Path

import pytest
import torch

from alignment import distributed
from tests.support.torchrun import LAUNCHER, run

# Something that Python keeps until it shuts down must not refer to the group: its threads would outlive it.
WORKER = """
import sys
import weakref
import torch
from alignment import distributed

fails, failure = sys.argv[1] == "error", None
try:
    with distributed.process_group() as rank:
        group = weakref.ref(torch.distributed.group.WORLD)
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # imports modules that could keep the group
        if fails and rank == 1:
            raise RuntimeError("rank 0 waits in vain")
        assert distributed.rank_and_world_size() == (rank, 2)
        assert distributed.broadcast(0.1 + rank) == 0.1
        assert distributed.all_reduce(torch.tensor([1.0, 2.0 + rank])).tolist() == [2.0, 5.0]
        whole = torch.arange(14.0).reshape(7, 2)
        assert distributed.rank_slices(7) == [slice(0, 3), slice(3, 7)]
        torch.testing.assert_close(distributed.all_gather(whole[distributed.rank_slices(7)[rank]], 7), whole)
except RuntimeError as error:
    failure = error  # with its traceback
assert (failure is not None) == fails, failure
assert group() is None, "something refers to the group"
assert distributed.rank_and_world_size() == (0, 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["success", "error"])
def test_two_processes_exchange_values_and_rows_and_free_their_group(end: str, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    process = run(*LAUNCHER, str(script), end)
    assert process.returncode == 0, process.stderr[-3000:]


def test_a_process_alone_is_rank_0_of_1() -> None:
    with distributed.process_group() as rank:
        assert rank == distributed.rank() == distributed.local_rank() == 0
        assert distributed.rank_and_world_size() == (0, distributed.world_size()) == (0, 1)
        assert distributed.broadcast(2.5) == 2.5
        rows = torch.ones(3, 2)
        assert distributed.all_gather(rows, 3) is rows


@pytest.mark.parametrize("size", [0, 1, 7, 512])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_slices_share_the_rows_evenly(size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "rank_and_world_size", lambda: (0, count))
    slices = distributed.rank_slices(size)
    assert [row for part in slices for row in range(size)[part]] == list(range(size))
    lengths = [part.stop - part.start for part in slices]
    assert max(lengths) - min(lengths) <= 1
