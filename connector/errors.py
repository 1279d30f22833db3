"""The exceptions of the connector. Their base and those of the training side are in alignment.errors.

ModalignError                       (alignment.errors)
└── ConnectorError
    ├── SettingsError               an invalid name, URL or option
    ├── CorpusError                 a corpus that cannot be read at all; a bad row becomes a reject
    │   └── CorpusChangedError      ... because a file has changed since the corpus was cut into units
    ├── OutOfResourcesError         no memory, threads, open files or disk space left; never a reject
    ├── EncoderError                an encoder that is unknown, cannot be loaded, or is the wrong one
    ├── QueryError                  a search that asks for nothing that can be searched
    ├── PictureError                a picture to search with that is missing or cannot be decoded
    ├── OutputError                 a file or directory that a command cannot write
    ├── ExecutorError               workers that cannot be had, or that are lost
    ├── ProvenanceError             the SQL database
    │   ├── NotMigratedError        has no tables, or older ones: run `modalign db upgrade`
    │   ├── LeaseLostError          another process has taken over the step of this one
    │   └── LeaseHeldError          another process holds the lock
    ├── StoreError                  Qdrant refused or failed
    │   ├── StoreUnavailableError   unreachable, overloaded, timed out: try again
    │   │   ├── DeadlinePassedError not answered within the deadline that was given
    │   │   └── ClusterError        ... because nodes of a cluster are away
    │   ├── StoreBusyError          another process owns the embedded store
    │   ├── AccessDeniedError       the key or token does not allow it (401, 403)
    │   ├── RequestRefusedError     the request is wrong (400, 422)
    │   │   ├── ExactRefusedError   the server answers no exact searches and counts
    │   │   └── FilterRefusedError  ... or no filter like this one
    │   ├── RequestTooLargeError    the request is too large
    │   │   └── RequestOverRateError it alone costs more than a minute may
    │   ├── StoreFullError          takes no more points
    │   ├── PointsRefusedError      some points of a batch are refused; the others are written
    │   └── CollectionNotFoundError no such collection, alias or release
    ├── FilterError                 an invalid filter
    ├── MismatchError               two things that must agree do not
    │   └── StrangePointError       a point that modalign did not write
    ├── GateError                   a promotion that no audit allows
    ├── EmptyReleaseError           a new release of which every row was refused
    ├── IndexRecallError            a release whose index finds less than was required
    └── RequirementError            an audit requirement that cannot be read
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

from alignment.errors import ModalignError
from alignment.plurals import counted
from connector.rejects import Reason


class ConnectorError(ModalignError):
    """Base of what goes wrong between corpora, databases and alignments."""


class SettingsError(ConnectorError, ValueError):
    """An invalid name, URL or option."""


class CorpusError(ConnectorError):
    """A corpus that cannot be read at all. A bad row becomes a reject instead."""


class CorpusChangedError(CorpusError):
    """A file of a corpus is another one than when the corpus was cut into units."""


class OutOfResourcesError(ConnectorError):
    """There is not enough memory, or no thread, open file or disk space left. It says nothing about the data."""


EMBED = "embed"  # code of an `EncoderError` of what was to be embedded, which may go well another time


class EncoderError(ConnectorError):
    """An encoder that is unknown, cannot be loaded, fails, or is not the one that is needed."""


class QueryError(ConnectorError, ValueError):
    """A search that asks for nothing that can be searched: an empty text, or a limit that is none."""


class PictureError(ConnectorError):
    """A picture to search with that is missing or cannot be decoded."""


class OutputError(ConnectorError):
    """A file or directory that a command cannot write."""


class ExecutorError(ConnectorError):
    """Workers that cannot be had, or that are lost. What is done is kept: the same command goes on from there."""


class ProvenanceError(ConnectorError):
    """The SQL database cannot be reached, or refuses a statement."""


class NotMigratedError(ProvenanceError):
    """The SQL database has no tables or older ones; the message names the command that helps."""


class LeaseLostError(ProvenanceError):
    """Another process has taken over what this one was working on: a step of an ingest, or a promotion."""


class LeaseHeldError(ProvenanceError):
    """Another process is changing which releases of a collection are live, and did not end in time."""


class StoreError(ConnectorError):
    """Qdrant refused an operation or failed; trying again does not help."""


class StoreUnavailableError(StoreError):
    """Qdrant cannot be reached, is overloaded or timed out; trying again may help.

    Attributes:
        retry_after: seconds that the server asks to wait; None: it does not say.
    """

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class ClusterError(StoreUnavailableError):
    """Nodes of a cluster are away, and what was asked for needs them; trying again helps once they are back."""


class DeadlinePassedError(StoreUnavailableError):
    """Qdrant did not answer within the deadline that was given, `--timeout` or that of a `Retriever`."""


class StoreBusyError(StoreError):
    """The embedded store belongs to another process."""


class AccessDeniedError(StoreError):
    """The key or token that Qdrant was given does not allow an operation, or does not show a collection."""


class RequestRefusedError(StoreError):
    """Qdrant calls a request wrong. Of a batch of points, one may be at fault."""


class ExactRefusedError(RequestRefusedError):
    """The server answers no exact searches and counts, as strict mode may say."""


class FilterRefusedError(RequestRefusedError):
    """The server answers no filter on a field without an index, or of so many conditions, as strict mode may say."""


class RequestTooLargeError(StoreError):
    """The body of a request is larger than the server, or a proxy before it, takes."""


class RequestOverRateError(RequestTooLargeError):
    """One request costs more than the server's rate limit allows in a minute, so waiting does not help."""


class StoreFullError(StoreError):
    """The server takes no more points: a limit of the collection, memory or disk is reached. No point is at fault."""


class Refusal(NamedTuple):
    """Why one point was refused: a short name that can be counted, and what exactly was wrong, for people."""

    reason: Reason
    detail: str


class PointsRefusedError(StoreError):
    """Some points of a batch were refused; all others are written.

    Attributes:
        refused: why, by the row in the batch.
    """

    def __init__(self, where: str, refused: Mapping[int, Refusal]):
        row, first = next(iter(sorted(refused.items())))
        super().__init__(f"{where}: {counted(len(refused), 'point')} refused, the first is row {row}: {first.detail}")
        self.refused = dict(refused)


class CollectionNotFoundError(StoreError):
    """There is no such collection, alias or release."""


class FilterError(ConnectorError, ValueError):
    """An invalid filter, or one that a store cannot evaluate."""


class MismatchError(ConnectorError):
    """Two things that must agree do not, such as encoder, alignment, metric, lowering or counts."""


class StrangePointError(MismatchError):
    """A collection holds a point that modalign did not write, or that something else changed since."""

    def __init__(self, point: str, what: str):
        self._point_and_what = point, what
        super().__init__(
            f"point {point} of the collection {what}: modalign did not write it, or something else changed it since; "
            "`modalign verify` compares all of them"
        )

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Let it come from another process."""
        return type(self), self._point_and_what


class GateError(ConnectorError):
    """A promotion that no audit allows: the newest is missing, has failed, or measured something else."""


class EmptyReleaseError(ConnectorError):
    """No row could be written into a new release, so it must not go live; the rejects of the run say why."""


class IndexRecallError(ConnectorError):
    """The index of a release finds less of the exact first hits than was required, so the release does not go live."""


class RequirementError(ConnectorError, ValueError):
    """An audit requirement that cannot be read."""
