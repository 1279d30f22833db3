"""Work that overlaps: iterators that run ahead of their reader in threads of their own, and stop together."""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from threading import Condition, Thread
from typing import Self, TypeVar

T = TypeVar("T")

# A stage that comes back from a model or a file asks for the interpreter, and gets it after so many seconds. Python's
# own 5 ms are longer than most of an encoder's operations: it would wait more than it works.
SWITCH_SECONDS = 0.0005


class _StoppedError(Exception):
    """Whoever reads has gone; it unwinds a stage and is heard by nobody."""


class Pipeline:
    """Stages that hand values on through bounded buffers. Use as a context manager.

    A stage may read from another one. What a stage raises is raised, as itself, where its values are read. However the
    block ends, every stage is stopped where it next takes or hands on a value, and has ended when the block has.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._stopped = False
        self._threads: list[Thread] = []

    def __enter__(self) -> Self:
        self._switching = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switching, SWITCH_SECONDS))
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._switching)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def ahead(self, source: Generator[T, None, None], most: int) -> Iterator[T]:
        """Start to run `source` in a thread, at most `most` values ahead; return what it yields."""
        handed: deque[T] = deque()
        ended: list[BaseException | None] = []
        thread = Thread(target=self._run, args=(source, handed, ended, most), daemon=True)
        self._threads.append(thread)
        thread.start()
        return self._taken(handed, ended)

    def _run(
        self, source: Generator[T, None, None], handed: deque[T], ended: list[BaseException | None], most: int
    ) -> None:
        failure: BaseException | None = None
        try:
            for value in source:
                with self._changed:
                    self._wait(lambda: len(handed) < most)
                    handed.append(value)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  it is raised where the values are read
            failure = error
        try:
            source.close()
        except BaseException as error:  # noqa: BLE001
            failure = failure or error
        with self._changed:
            ended.append(failure)
            self._changed.notify_all()

    def _taken(self, handed: deque[T], ended: list[BaseException | None]) -> Iterator[T]:
        while True:
            with self._changed:
                self._wait(lambda: handed or ended)
                if not handed:
                    if ended[0] is not None:
                        raise ended[0]
                    return
                value = handed.popleft()
                self._changed.notify_all()
            yield value

    def _wait(self, ready: Callable[[], object]) -> None:
        self._changed.wait_for(lambda: self._stopped or ready())
        if self._stopped:
            raise _StoppedError
