"""The Qdrant server of the rows that need one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from bench.row import LeftOut
from tests.support.qdrant_nodes import Server
from tests.support.qdrant_servers import found_or_started


@contextmanager
def server() -> Iterator[Server]:
    """The server that MODALIGN_TEST_QDRANT_URL names, or one that is started from MODALIGN_TEST_QDRANT_BINARY.

    Raises:
        LeftOut: there is neither.
    """
    with ExitStack() as stack:
        try:
            found = stack.enter_context(found_or_started())
        except pytest.skip.Exception as reason:
            raise LeftOut(f"no server: {reason}") from None
        yield found
