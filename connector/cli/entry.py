"""The entry point of the command `modalign`: Ctrl-C while everything else is imported is no traceback, either."""

import sys


def main() -> None:
    """Import the command line and run it."""
    try:
        from connector.cli.main import main as run  # takes a third of a second, in which people press Ctrl-C
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before anything began\n")
        sys.exit(130)
    run()
