"""Ctrl-C waits for code that would lose it, and is not lost."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

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


LOOKED_FOR = """
import signal, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from alignment.sets.rows import Rows
from alignment.sets.shards import read_shard, table_of, write_shard

class Looked:
    def find_spec(self, name, *rest):
        if name == "pandas":
            print("looked for, and Ctrl-C", "ends" if signal.getsignal(signal.SIGINT) is interrupts else "waits")

signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts = signal.getsignal(signal.SIGINT)
sys.meta_path.insert(0, Looked())
"""


def looking(script: str, directory: Path) -> str:
    """Run a script that says when pandas is looked for."""
    whole = LOOKED_FOR + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, check=True, cwd=directory
    ).stdout


def test_ctrl_c_waits_while_pyarrow_looks_for_pandas_once_and_reading_a_shard_does_not_look(tmp_path: Path) -> None:
    write = """
        from pathlib import Path
        rows = Rows("image", ["a"], ["a"], ["0" * 64], ["{}"], np.array([[1, 2, 3]], "float32"))
        write_shard(Path("image-0.parquet"), rows, "float16")
        print(pa.array([[1.0, 2.0], None]).value_lengths().to_numpy(zero_copy_only=False), pa.array(np.ones(2)))
    """
    assert looking(write, tmp_path).startswith("looked for, and Ctrl-C waits\n[ 2. nan]")
    read = """
        from pathlib import Path
        print(read_shard(Path("image-0.parquet"), "image").vectors)
    """
    assert looking(read, tmp_path) == "[[1. 2. 3.]]\n"
