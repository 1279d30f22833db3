"""torch's tables of the operators that ONNX has, and of its own that an export keeps, read once.

Each export reads them anew, which is more than half of its time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from torch._export import utils
from torch.onnx._internal.exporter._registration import ONNXRegistry


@contextmanager
def operators_read_once() -> Iterator[None]:
    """Within the block all exports share the tables; none adds to them."""
    composite = cache(utils._collect_all_valid_cia_ops_for_namespace)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        patched.setattr(utils, "_collect_all_valid_cia_ops_for_namespace", composite)
        yield
