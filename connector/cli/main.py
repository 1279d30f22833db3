"""The command line: each command opens the home, calls one method and prints the result.

Imports inside the commands keep `modalign --help` fast: numpy, torch, SQLAlchemy and the databases load when used.
"""

import io
import logging
import sys
from typing import NoReturn

import click

from alignment.errors import MetricError, ModalignError, TrainingError
from alignment.packages import missing_package
from connector.cli import alignments, audits, inventory, push, releases, runs, search, sets, status, streams
from connector.cli.group import FAILED, INTERRUPTED, REQUIREMENT, USAGE, cli
from connector.errors import (
    FilterError,
    GateError,
    OutOfResourcesError,
    QueryError,
    RequirementError,
    SettingsError,
)
from connector.progress import StderrHandler, say
from connector.resources import is_lack
from connector.safe_text import without_secrets

__all__ = ["cli", "main"]

# Each adds its commands to the group when it is imported.
COMMANDS = (sets, alignments, inventory, push, search, audits, releases, status, runs)
# What only the command line can be wrong about.
USAGE_ERRORS = (
    FilterError,
    MetricError,
    QueryError,
    RequirementError,
    SettingsError,
    TrainingError,
)


def main() -> NoReturn:
    """Run the command line and turn every way to end into its exit code."""
    streams.prepare()
    for name in ("alignment", "connector"):  # one line on stderr a message, as commands print
        logging.getLogger(name).handlers = [StderrHandler()]
        logging.getLogger(name).setLevel(logging.INFO)
    sys.exit(streams.finish(_exit_code(), FAILED))


def _exit_code() -> int:
    try:
        code = _run()
    except SystemExit as stop:
        code = stop.code
    except click.ClickException as error:
        message = io.StringIO()
        error.show(message)
        for line in message.getvalue().splitlines():
            say(line)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        say("interrupted; nothing is half written: run the same command again")
        return INTERRUPTED
    except ModalignError as error:
        say(f"modalign: {without_secrets(str(error))} [{error.code}]")
        return USAGE if isinstance(error, USAGE_ERRORS) else REQUIREMENT if isinstance(error, GateError) else FAILED
    except (MemoryError, RuntimeError) as error:
        if not is_lack(error):
            raise
        say(f"modalign: {type(error).__name__}: {error or 'no memory left'} [{OutOfResourcesError.code}]")
        return FAILED
    except OSError as error:  # a full disk, a home or a stdout that cannot be written
        say(f"modalign: {error}")
        return FAILED
    return code if isinstance(code, int) else 0


def _run() -> object:
    try:
        return cli.main(standalone_mode=False)
    except ImportError as error:  # of torch above all, which is imported where it is needed
        raise missing_package(error, "this command") from error


if __name__ == "__main__":  # python -m connector.cli.main
    main()
