"""A process that kills itself at a point within the code."""

import os
import signal
from typing import Any


def die_before(owner: Any, name: str, calls: int) -> None:
    """Kill this process, which is a child of a test, before the function is called once more than `calls` times."""
    original = getattr(owner, name)

    def armed(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if not calls:
            os.kill(os.getpid(), signal.SIGKILL)
        calls -= 1
        return original(*arguments, **options)

    setattr(owner, name, armed)
