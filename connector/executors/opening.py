"""From the value of `--on` to the executor that it names."""

from collections.abc import Iterator
from contextlib import contextmanager

from connector.errors import SettingsError
from connector.executors.contract import Executor
from connector.executors.local import LocalExecutor

LOCAL = "local"


@contextmanager
def open_executor(on: str = LOCAL) -> Iterator[Executor]:
    """Open the executor that `on` names, and end it with the block.

    Raises:
        SettingsError: `on` is none of the forms.
    """
    if on != LOCAL:
        raise SettingsError(f"--on {on!r}: expected {LOCAL}", code="on")
    yield LocalExecutor()
