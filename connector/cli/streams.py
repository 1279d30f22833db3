"""The standard streams, also where one is closed, full, or of an encoding that lacks a character."""

import errno
import io
import os
import sys


def prepare() -> None:
    """Give closed streams a descriptor, so that no file that is opened later takes its place.

    What is printed on a closed stdout fails, as on a full disk; what is said on a closed stderr is lost. Characters
    that the encoding of stdout lacks, such as bytes of a path that are no UTF-8, are printed as escapes.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  which ends at once
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  which cannot be written
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def finish(code: int, failed: int) -> int:
    """Write what is still to be written; return the exit code: `failed` in place of 0 if stdout did not take it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # Python would try again when it ends, and fail with another exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout:
                if error.errno != errno.EPIPE and not code:
                    from connector.progress import say  # `--help` need not wait for logging

                    say(f"modalign: stdout cannot be written: {error}")
                code = code or failed
    return code
