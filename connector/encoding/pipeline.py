"""Iterators that run ahead of their reader in threads of their own, and stop together."""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from threading import Condition, Thread
from typing import Self, TypeVar

T = TypeVar("T")

# Seconds until a thread that waits for the interpreter gets it. Python's default of 5 ms is longer than most operations
# of an encoder, which would wait longer than it works.
SWITCH_SECONDS = 0.0005


class _StoppedError(Exception):
    """The pipeline was closed. Raised inside a stage to unwind it; nobody catches it."""


class Pipeline:
    """Stages that pass values on through bounded buffers. Use as a context manager.

    A stage may read from another one. Its exceptions are raised unchanged where its values are read. When the block
    ends, every stage is stopped at its next value, and all threads are joined.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._stopped = False
        self._threads: list[Thread] = []

    def __enter__(self) -> Self:
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch_interval, SWITCH_SECONDS))
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._switch_interval)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def ahead(self, source: Generator[T, None, None], most: int) -> Iterator[T]:
        """Run `source` in a thread, at most `most` values ahead of its reader; return an iterator over its values."""
        buffer: deque[T] = deque()
        ended: list[BaseException | None] = []
        thread = Thread(target=self._run, args=(source, buffer, ended, most), daemon=True)
        self._threads.append(thread)
        thread.start()
        return self._read(buffer, ended)

    def _run(
        self, source: Generator[T, None, None], buffer: deque[T], ended: list[BaseException | None], most: int
    ) -> None:
        failure: BaseException | None = None
        try:
            for value in source:
                with self._changed:
                    self._wait(lambda: len(buffer) < most)
                    buffer.append(value)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  raised where the values are read
            failure = error
        try:
            source.close()
        except BaseException as error:  # noqa: BLE001
            failure = failure or error
        with self._changed:
            ended.append(failure)
            self._changed.notify_all()

    def _read(self, buffer: deque[T], ended: list[BaseException | None]) -> Iterator[T]:
        while True:
            with self._changed:
                self._wait(lambda: buffer or ended)
                if not buffer:
                    if ended[0] is not None:
                        raise ended[0]
                    return
                value = buffer.popleft()
                self._changed.notify_all()
            yield value

    def _wait(self, ready: Callable[[], object]) -> None:
        self._changed.wait_for(lambda: self._stopped or ready())
        if self._stopped:
            raise _StoppedError
