"""The SQL database: engine, transactions, migrations, and the one place where SQLAlchemy's errors become ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Self

from alembic import command as alembic
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

import migrations
from connector.errors import NotMigratedError, ProvenanceError
from connector.safe_text import redacted, without_secrets


class Database:
    """An SQL database, SQLite or PostgreSQL.

    Paths under `home` are stored relative to it, so that a home can be moved, copied and restored.
    """

    def __init__(self, url: str, home: Path | None = None):
        self.url = url
        self.home = home.absolute() if home else None
        self.engine = _engine(url)

    @classmethod
    def open(cls, url: str, *, home: Path | None = None) -> Self:
        """Open a database whose tables are those of this version.

        Raises:
            ProvenanceError: it cannot be reached.
            NotMigratedError: its tables are missing, or of another version of modalign.
        """
        opened = cls(url, home)
        with _translated(url):
            if (path := _sqlite_path(url)) and not path.exists():
                current: tuple[str, ...] = ()  # connecting would create the file
            else:
                with opened.engine.connect() as connection:
                    current = MigrationContext.configure(connection).get_current_heads()
        expected = tuple(ScriptDirectory.from_config(alembic_config(url)).get_heads())
        if current != expected:
            opened.close()
            raise NotMigratedError(
                f"database {redacted(url)}: expected the tables of migration {', '.join(expected)}, found "
                f"{', '.join(current) or 'none'}; run `modalign db upgrade`"
            )
        return opened

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open a transaction: it commits when the block ends, and rolls back when the block raises.

        Raises:
            ProvenanceError: the database cannot be reached, or refuses a statement.
        """
        with _translated(self.url), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def stored(self, place: Path | str) -> str:
        """Return the form in which SQL stores a path or an `edge:` URL: relative to the home where it lies in it."""
        scheme, path = ("edge:", str(place)[5:]) if str(place).startswith("edge:") else ("", str(place))
        if self.home and (scheme or isinstance(place, Path)) and Path(path).absolute().is_relative_to(self.home):
            return scheme + Path(path).absolute().relative_to(self.home).as_posix()
        return str(place)

    def located(self, stored: str) -> Path:
        """Return the path that SQL stores as `stored`."""
        return self.home / stored if self.home else Path(stored)


def upgrade(url: str, revision: str = "head") -> None:
    """Create or upgrade the tables of the database at `url`."""
    if path := _sqlite_path(url):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # a new directory is for its owner alone
        except OSError as error:
            raise ProvenanceError(f"database {redacted(url)}: cannot create its directory: {error}") from error
    with _translated(url):
        try:
            alembic.upgrade(alembic_config(url), revision)
        except CommandError as error:
            raise ProvenanceError(
                f"database {redacted(url)}: {error}; it was made by a newer modalign, or is not modalign's"
            ) from error


def downgrade(url: str, revision: str) -> None:
    """Downgrade the tables to `revision`. The revision `base` drops all tables with their rows."""
    with _translated(url):
        alembic.downgrade(alembic_config(url), revision)


def alembic_config(url: str) -> Config:
    """Return Alembic's configuration for the database at `url`."""
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
        # Test a connection before use: a restarted server or a firewall may have cut it.
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
    except ValueError:  # its message quotes the text in the place of the port, which may be a password
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
    """Raise SQLAlchemy's errors as ours. No other place does."""
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
            f"database {redacted(url)}: a JSON column holds something else ({error}): something other than modalign "
            "changed it; restore it from a backup"
        ) from error
