"""The entry point of the command `modalign`: Ctrl-C while everything else is imported is no traceback, either."""

import gc
import signal
import sys

# Objects that are made before Python looks for garbage among them, instead of 700. What imports make is none: to look
# through it a hundred times, and once more at the end, is a fifth of the time of `modalign status`. Python does not
# look at all before `connector.cli.opening.load_settings`, when most is imported.
OBJECTS = 10_000


def main() -> None:
    """Import the command line and run it."""
    gc.disable()
    gc.set_threshold(OBJECTS)
    try:
        from connector.cli.main import main as run  # takes a third of a second, in which people press Ctrl-C
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before anything began\n")
        sys.exit(130)
    try:
        run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the exit code stands: Ctrl-C would only change it
        # The memory goes with the process. With torch come modules, of triton, that print thousands of bytes on stderr
        # about objects of theirs that nobody collects.
        if "torch" in sys.modules:
            gc.unfreeze()
        else:
            gc.freeze()
