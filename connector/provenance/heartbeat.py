"""Heartbeats: a thread reports regularly, by the database's clock, that a process still works."""

from collections.abc import Callable
from datetime import datetime
from threading import Event, Thread

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from connector.errors import ProvenanceError
from connector.provenance.tables import UtcDateTime

LEASE_SECONDS = 120.0  # who sent no heartbeat for so long is dead; a process sends four in this time


class Heartbeat:
    """Calls `beat` four times in `LEASE_SECONDS` until it is closed.

    Attributes:
        failure: why the last call failed; None: it did not.
    """

    def __init__(self, beat: Callable[[], None]):
        self.failure: ProvenanceError | None = None
        self._beat = beat
        self._closed = Event()
        self._thread = Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        while not self._closed.wait(LEASE_SECONDS / 4):
            try:
                self._beat()
            except ProvenanceError as error:
                self.failure = error
            else:
                self.failure = None

    def close(self) -> None:
        """Stop."""
        self._closed.set()
        self._thread.join()


def database_now(session: Session) -> datetime:
    """Return the time by the database's clock, which all hosts share."""
    return session.scalars(select(func.current_timestamp(type_=UtcDateTime()))).one()
