"""The command line: each command opens the home, calls one method and prints the result.

`modalign --help` imports click and little else: the module of a command is imported when the command runs (see
`connector.cli.group`), and numpy, torch, SQLAlchemy and the databases when they are used.
"""

import sys
from contextlib import suppress
from typing import NoReturn

import click

from connector.cli import streams
from connector.cli.group import FAILED, INTERRUPTED, cli
from connector.prose import takes_styles

__all__ = ["cli", "main"]


def main() -> NoReturn:
    """Run the command line and turn every way to end into its exit code."""
    streams.prepare()
    sys.exit(streams.finish(_exit_code(), FAILED))


def _exit_code() -> int:
    try:
        code = cli.main(standalone_mode=False, color=None if takes_styles() else False)
    except SystemExit as stop:
        code = stop.code
    except (click.Abort, KeyboardInterrupt):
        from alignment.interrupts import uninterrupted
        from connector.progress import say  # `--help` need not wait for logging

        with suppress(KeyboardInterrupt), uninterrupted():  # people press Ctrl-C twice
            say("interrupted; nothing is half written: run the same command again")
        return INTERRUPTED
    except Exception as error:
        from connector.cli.failures import exit_code  # imports what a command that ends well need not wait for

        failed = exit_code(error)
        if failed is None:
            raise
        return failed
    return code if isinstance(code, int) else 0


if __name__ == "__main__":  # python -m connector.cli.main
    main()
