"""The command line in a process that respects permissions, also where root runs the tests."""

import os
import shutil
import subprocess
import sys

import pytest


def unprivileged(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `modalign` as this user, without root's right to read and write everything."""
    return unprivileged_python("-m", "connector.cli.main", *arguments)


def unprivileged_python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python so."""
    drop: list[str] = []
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv") or pytest.skip("needs setpriv, because root runs the tests")
        drop = [setpriv, "--bounding-set=-all", "--inh-caps=-all"]
    command = [*drop, sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
