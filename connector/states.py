"""How a release, a run and an audit stand: the words of SQL, JSON and the command line."""

from enum import StrEnum


class ReleaseState(StrEnum):
    """States of a release, in the order in which a status lists them."""

    LIVE = "live"  # the alias names it
    READY = "ready"  # it is complete
    BUILDING = "building"  # it is not verified yet
    RETIRED = "retired"  # another one is live instead, or it is dropped


class RunOutcome(StrEnum):
    """How a run ended, or that it goes on."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # by Ctrl-C
    KILLED = "killed"  # its process is gone, or sends no heartbeats


class AuditVerdict(StrEnum):
    """Verdicts of an audit, from the worst on."""

    BROKEN = "broken"  # nothing was measured
    FAILED = "failed"
    MEASURED = "measured"  # nothing was required
    PASSED = "passed"
