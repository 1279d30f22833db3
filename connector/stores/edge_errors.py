"""The boundary to Qdrant Edge: every failure of the engine becomes an error of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from connector.errors import ConnectorError, StoreBusyError, StoreError


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what the engine raises into a `StoreError`. The only place that does.

    Its errors are plain exceptions. Its panics are no `Exception`: they derive from `BaseException`.
    """
    try:
        yield
    except (ConnectorError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        busy = "WouldBlock" in str(error)
        kind = StoreBusyError if busy else StoreError
        raise kind(f"Qdrant Edge could not {what}: {error}") from error
