"""The SQL database: engine, migrations, errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from alembic import command as alembic
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

import migrations
from connector.errors import ProvenanceError
from connector.safe_text import redacted, without_secrets


def upgrade(url: str, revision: str = "head") -> None:
    """Create or upgrade the tables of the database at `url`."""
    if path := _sqlite_path(url):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # for its owner alone, where it is new
        except OSError as error:
            raise ProvenanceError(f"database {redacted(url)}: its directory cannot be made: {error}") from error
    with _translated(url):
        try:
            alembic.upgrade(alembic_config(url), revision)
        except CommandError as error:
            raise ProvenanceError(
                f"database {redacted(url)}: {error}; it was made by a newer modalign, or is not modalign's"
            ) from error


def downgrade(url: str, revision: str) -> None:
    """Take the tables back to `revision`; `base` removes them with all they hold."""
    with _translated(url):
        alembic.downgrade(alembic_config(url), revision)


def alembic_config(url: str) -> Config:
    """Return Alembic's configuration for the database at `url`; the migrations are a package, wherever it lies."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["engine"] = _engine(url)
    return config


def _engine(url: str) -> Engine:
    try:
        parsed = _parsed(url)
        if "@" in (parsed.host or ""):  # drivers would print the half of the password that they take for the host
            raise ValueError("write an @ in the password as %40")
        if parsed.drivername in ("postgresql", "postgres"):  # psycopg 3 is the driver that our extra installs
            parsed = parsed.set(drivername="postgresql+psycopg")
        # A connection that a restarted server or a firewall has cut is noticed, and replaced, before it is used.
        engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        why = without_secrets(" ".join(str(error).split()))
        raise ProvenanceError(
            f"database {redacted(url)}: expected an SQLAlchemy URL such as sqlite:///PATH or "
            f"postgresql://USER@HOST/NAME (with the extra `postgres`); {why}"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _harden_sqlite)
    return engine


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ValueError:  # it quotes what stands where the port should, which may be a password
        raise ValueError("the port is no number") from None


def _harden_sqlite(connection: Any, _: object) -> None:
    # A commit survives a power cut; readers do not stop a writer; a second writer waits instead of failing.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_path(url: str) -> Path | None:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return None
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """The one boundary at which SQLAlchemy's errors become ours."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        raise ProvenanceError(
            f"database {redacted(url)}: {without_secrets(cause)}; check that it runs and that "
            "MODALIGN_DATABASE_URL names it"
        ) from error
    except JSONDecodeError as error:
        raise ProvenanceError(
            f"database {redacted(url)}: a column of JSON holds something else ({error}): it was changed behind "
            "modalign's back; restore it from a backup"
        ) from error
