"""The line on stderr and the exit code for each error that ends a command."""

import io

import click

from alignment.errors import MetricError, ModalignError, TrainingError
from alignment.object_storage import is_url
from alignment.packages import missing_package
from alignment.storages import denied
from connector.cli.group import FAILED, REQUIREMENT, USAGE
from connector.errors import (
    FilterError,
    GateError,
    OutOfResourcesError,
    QueryError,
    RequirementError,
    SettingsError,
)
from connector.progress import say
from connector.resources import is_lack, lack_in_words
from connector.safe_text import without_secrets

# What only the command line can be wrong about.
USAGE_ERRORS = (
    FilterError,
    MetricError,
    QueryError,
    RequirementError,
    SettingsError,
    TrainingError,
)


def exit_code(error: Exception) -> int | None:
    """Say what went wrong and return the exit code; None, and nothing is said, of an error that nobody foresaw."""
    if isinstance(error, ImportError):  # of torch above all, which is imported where it is needed
        error = missing_package(error, "this command")
    match error:
        case click.ClickException():
            message = io.StringIO()
            error.show(message)
            for line in message.getvalue().splitlines():
                say(line)
            return USAGE
        case ModalignError():
            say(f"modalign: {without_secrets(str(error))} [{error.code}]")
            return USAGE if isinstance(error, USAGE_ERRORS) else REQUIREMENT if isinstance(error, GateError) else FAILED
        case MemoryError() | RuntimeError() | OSError() if is_lack(error):
            say(f"modalign: {lack_in_words(error)} [{OutOfResourcesError.code}]")
            return FAILED
        case PermissionError() if is_url(error.filename):
            return exit_code(denied(error.filename, "read or written"))
        case OSError():  # a home or a stdout that cannot be written
            say(f"modalign: {error} [os-error]")
            return FAILED
    return None
