"""Ctrl-C waits for code that would lose it, and is not lost."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from alignment.interrupts import uninterrupted


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs tests in the background has it ignored
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_in_the_middle(reached)
    assert reached == ["the end of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def interrupted_in_the_middle(reached: list[str]) -> None:
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end of the block")
    reached.append("what comes after it")


def test_pyarrow_looks_for_pandas_before_any_work() -> None:
    """At its first conversion it would, and lose an interrupt that comes meanwhile."""
    script = textwrap.dedent(
        """
        import numpy as np, pyarrow as pa, sys
        from alignment.sets.rows import Rows
        from alignment.sets.shards import rows_of, table_of
        class Looked:
            def find_spec(self, name, *rest):
                print("looked for", name) if name == "pandas" else None
        sys.meta_path.insert(0, Looked())
        rows = Rows("image", ["a"], ["a"], ["0" * 64], ["{}"], np.zeros((1, 3), "float32"))
        rows_of("image", table_of(rows, "float32"))
        print(pa.array([[1.0, 2.0], None]).value_lengths().to_numpy(zero_copy_only=False), pa.array(np.ones(2)))
        """
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "looked for pandas" not in ended.stdout
    assert "nan" in ended.stdout
