"""What the code of an encoder raises, in words of modalign: one line that names the encoder."""

from collections.abc import Iterator
from contextlib import contextmanager

from alignment.errors import MissingPackageError
from alignment.packages import missing_package
from connector.errors import EncoderError
from connector.resources import raise_lack


@contextmanager
def naming_encoder(spec: str, failed: str, *, code: str | None = None) -> Iterator[None]:
    """Run code of the encoder `spec`, which may raise anything; `failed` says what it could not do, for messages.

    SystemExit is a failure too: a script that was made an encoder would else end the command, and with success.

    Raises:
        EncoderError: the code failed.
        MissingPackageError: it imports a package that is not installed.
        OutOfResourcesError: memory, threads, files or disk space ran out, which says nothing about the encoder.
    """
    try:
        yield
    except (EncoderError, MissingPackageError):
        raise
    except ImportError as error:
        raise missing_package(error, f"encoder {spec}") from error
    except (Exception, SystemExit) as error:
        raise_lack(error, f"encoder {spec} {failed}")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EncoderError(f"encoder {spec} {failed}: {reason}", code=code) from error
