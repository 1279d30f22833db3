"""What pyarrow does at its first conversion between Arrow and Python or numpy: it imports pandas, if that is there."""

from functools import cache

import pyarrow as pa

from alignment.interrupts import uninterrupted


@cache
def look_for_pandas() -> None:
    """Let pyarrow try to import pandas now.

    It loses a Ctrl-C that comes meanwhile. Reading a shard converts nothing, so that a command that only reads does
    without pandas, which takes .4 s to import.
    """
    with uninterrupted():
        pa.array([0.0])
