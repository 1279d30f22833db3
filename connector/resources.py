"""Errors that come from a lack of memory, threads, files or disk space, and say nothing about the data."""

import errno

from connector.errors import OutOfResourcesError

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
ERRNOS = FULL_DISK | {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
# Libraries raise these as RuntimeError or OSError.
MESSAGES = ("can't start new thread", "can't allocate memory", "out of memory", "not enough memory")


def is_lack(error: BaseException) -> bool:
    """Whether `error`, or one that caused it, says that the machine or its limits have no more to give.

    >>> is_lack(MemoryError()), is_lack(OSError(24, "Too many open files")), is_lack(OSError("broken data stream"))
    (True, True, False)
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError | OutOfResourcesError):
            return True
        if isinstance(seen, OSError) and seen.errno is not None:
            if seen.errno in ERRNOS:
                return True
        elif isinstance(seen, OSError | RuntimeError) and any(text in str(seen).lower() for text in MESSAGES):
            return True
        seen = seen.__cause__
    return False


def raise_lack(error: BaseException, what: str) -> None:
    """Raise an `OutOfResourcesError` if `error` is a lack of resources; `what` was being done."""
    if is_lack(error):
        raise OutOfResourcesError(f"{what}: {lack_in_words(error)}") from error


def lack_in_words(error: BaseException) -> str:
    """Say what there is not enough of, and what to do.

    >>> lack_in_words(OSError(28, "No space left on device"))
    'OSError: [Errno 28] No space left on device; free disk space where the home and the output are, then run again'
    """
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        advice = "free disk space where the home and the output are"
    else:
        advice = (
            "expected enough memory, threads, open files and disk space: close other programs or raise the limits "
            "(ulimit -a)"
        )
    return f"{type(error).__name__}: {error or 'no memory left'}; {advice}, then run again"
