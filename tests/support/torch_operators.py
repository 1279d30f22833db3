"""torch's table of the operators that ONNX has, read once: each export reads it anew, which is half of its time."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry


@contextmanager
def operators_read_once() -> Iterator[None]:
    """Within the block all exports share one table; none adds to it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield
