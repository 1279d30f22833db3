"""The exceptions of the connector; their base and those of the training side stand in alignment.errors.

ModalignError                       (alignment.errors)
└── ConnectorError
    ├── SettingsError               names, URLs and options that cannot be meant
    ├── CorpusError                 a corpus that cannot be read at all; single rows become rejects instead
    ├── EncoderError                an encoder that does not exist, cannot be loaded, or is the wrong one
    ├── ProvenanceError             the SQL database
    │   ├── NotMigratedError        ... has no tables yet, or older ones: run `modalign db upgrade`
    │   ├── LeaseLostError          ... says that another process has taken over the step of this one
    │   └── LeaseHeldError          ... says that another process holds the lock
    ├── StoreError                  Qdrant refused or failed
    │   ├── StoreUnavailableError   ... for now: unreachable, overloaded, timed out. Worth another try
    │   ├── StoreBusyError          ... because another process owns it
    │   ├── RequestRefusedError     ... because the request is wrong (400, 422)
    │   ├── RequestTooLargeError    ... because its body is too large (413)
    │   ├── PointsRefusedError      ... some points of a batch; it says which and why. The others are written
    │   └── CollectionNotFoundError
    ├── FilterError                 a filter that is not valid
    ├── MismatchError               two things that must agree do not: fail closed, never a bad result
    │   └── StrangePointError       ... a point of a collection, and what modalign writes
    ├── GateError                   a promotion that no audit allows
    └── RequirementError            an audit requirement that cannot be read
"""

from collections.abc import Mapping
from typing import NamedTuple

from alignment.errors import ModalignError
from connector.rejects import Reason


class ConnectorError(ModalignError):
    """Base of what goes wrong between corpora, databases and alignments."""


class SettingsError(ConnectorError, ValueError):
    """A name, a URL or an option that cannot be meant."""


class CorpusError(ConnectorError):
    """A corpus that cannot be read at all. One bad row is no error but a reject."""


class EncoderError(ConnectorError):
    """An encoder that does not exist, cannot be loaded, or is not the one that is needed."""


class ProvenanceError(ConnectorError):
    """The SQL database cannot be reached or refused a statement."""


class NotMigratedError(ProvenanceError):
    """The SQL database has no tables or older ones; the message names the command that mends it."""


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


class StoreBusyError(StoreError):
    """The embedded store belongs to another process."""


class RequestRefusedError(StoreError):
    """Qdrant calls a request wrong. Of a batch of points, one may be at fault."""


class RequestTooLargeError(StoreError):
    """The body of a request is larger than the server, or a proxy before it, takes."""


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
        super().__init__(f"{where}: {len(refused)} points were refused, the first is row {row}: {first.detail}")
        self.refused = dict(refused)


class CollectionNotFoundError(StoreError):
    """There is no such collection, alias or release."""


class FilterError(ConnectorError, ValueError):
    """A filter that is not valid, or that a store cannot evaluate."""


class MismatchError(ConnectorError):
    """Two things that must agree do not: encoder, alignment, metric, lowering, counts."""


class StrangePointError(MismatchError):
    """A collection holds a point that modalign did not write, or that somebody has changed since."""

    def __init__(self, point: str, what: str):
        super().__init__(
            f"point {point} of the collection {what}: modalign did not write it, or it was changed since; "
            "`modalign verify` compares all of them"
        )


class GateError(ConnectorError):
    """A promotion that no audit allows: the newest is missing, failed, or of something else than would go live."""


class RequirementError(ConnectorError, ValueError):
    """An audit requirement that cannot be read."""
