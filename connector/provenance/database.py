"""The SQL database: engine, transactions, migrations, and the one place where SQLAlchemy's errors become ours."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from json import JSONDecodeError
from pathlib import Path
from shutil import copyfile
from sqlite3 import OperationalError
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session

from alignment.object_storage import as_remote, is_url, located
from alignment.packages import missing_package
from connector.errors import NotMigratedError, OutOfResourcesError, ProvenanceError, SettingsError
from connector.safe_text import redacted, without_secrets

if TYPE_CHECKING:
    from alembic.config import Config

# Found by file, never by import name: another package may be called `migrations` too. The wheel has them inside the
# package, the repository beside it.
_PACKAGE = Path(__file__).resolve().parents[1]
MIGRATIONS = next(
    directory
    for directory in (_PACKAGE / "migrations", _PACKAGE.parent / "migrations")
    if (directory / "versions" / "0001_the_first_tables.py").is_file()
)
LOCK_SECONDS = 30  # how long a statement waits for another process


class Database:
    """An SQL database, SQLite or PostgreSQL.

    Paths under `home` are stored relative to it, so that a home can be moved, copied and restored.
    """

    def __init__(self, url: str, home: Path | None = None):
        self.url = url
        self.home = home.absolute() if home else None
        self._copies = ExitStack()
        self.engine = _engine(url, self._copies)

    @classmethod
    def open(cls, url: str, *, home: Path | None = None) -> Self:
        """Open a database whose tables are those of this version.

        Raises:
            ProvenanceError: it cannot be reached, or a newer modalign or another program made its tables.
            NotMigratedError: its tables are missing, or of an older modalign.
        """
        opened = cls(url, home)
        try:
            if (found := opened.revision()) != revisions()[-1]:
                raise NotMigratedError(
                    f"database {redacted(url)}: expected the tables of migration {revisions()[-1]}, found "
                    f"{found or 'none'}; run `modalign db upgrade`"
                )
        except ProvenanceError:
            opened.close()
            raise
        return opened

    def revision(self) -> str | None:
        """Return the migration that made the tables; None: there are none.

        Raises:
            ProvenanceError: the database cannot be reached, or this version of modalign has no such migration.
        """
        if (path := _sqlite_path(self.url)) and not path.exists():
            return None  # connecting would create the file
        with _translated(self.url), self.engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found = connection.scalars(text("SELECT version_num FROM alembic_version")).all()
        if strange := [str(revision) for revision in found if revision not in revisions()]:
            newer = all(re.fullmatch(r"\d{4}", revision) for revision in strange)
            raise ProvenanceError(
                f"database {redacted(self.url)}: expected migration {revisions()[-1]} or older, found "
                f"{', '.join(strange)}; "
                + (
                    f"a newer modalign made its tables: update modalign, this is version {version('modalign')}"
                    if newer
                    else "another program keeps its tables there: give modalign a database of its own"
                ),
                code="database-newer" if newer else "database-foreign",
            )
        return max(found, default=None)

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()
        self._copies.close()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open a transaction: it commits when the block ends, and rolls back when the block raises.

        Raises:
            ProvenanceError: the database cannot be reached, or refuses a statement.
        """
        with _translated(self.url), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write_session(self, *tables: type[DeclarativeBase]) -> Iterator[Session]:
        """Open a transaction that inserts rows unless they are there: nothing comes between looking and inserting.

        On SQLite it is the only writer from its start. On PostgreSQL no other transaction writes into `tables`.

        Raises:
            ProvenanceError: the database cannot be reached, or refuses a statement.
        """
        with self.session() as session:
            if self.engine.dialect.name == "sqlite":
                session.execute(text("BEGIN IMMEDIATE"))
            elif tables:  # in one order, so that two transactions do not wait for each other
                names = ", ".join(sorted(table.__tablename__ for table in tables))
                session.execute(text(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE"))
            yield session

    def stored(self, place: Path | str) -> str:
        """Return the form in which SQL stores a path or an `edge:` URL: relative to the home where it lies in it."""
        home, remote = as_remote(self.home), as_remote(place)
        if home or remote:
            if home and remote and remote.is_relative_to(home):
                return remote.relative_to(home).as_posix()
            return str(place)
        scheme, path = ("edge:", str(place)[5:]) if str(place).startswith("edge:") else ("", str(place))
        if self.home and (scheme or isinstance(place, Path)) and Path(path).absolute().is_relative_to(self.home):
            return scheme + Path(path).absolute().relative_to(self.home).as_posix()
        return str(place)

    def located(self, stored: str) -> Path:
        """Return the path that SQL stores as `stored`."""
        if self.home is None or is_url(stored) or stored.startswith("/"):
            return located(stored) if is_url(stored) else Path(stored)
        return self.home / stored


def revisions() -> list[str]:
    """Return the migrations of this version of modalign, oldest first: the names of their files begin with them."""
    return sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def create_in_sqlite(url: str) -> None:
    """Create the tables in an SQLite database that has none of any program; any other database is left as it is.

    Several processes may do so at once. One that is killed leaves all tables or none.

    Raises:
        ProvenanceError: the database cannot be reached or written.
    """
    path = _sqlite_path(url)
    if path is None:
        return
    if path.exists():
        database = Database(url)
        try:
            with _translated(url), database.engine.connect() as connection:
                if inspect(connection).get_table_names():
                    return
        finally:
            database.close()
    upgrade(url)


def is_absent(url: str) -> bool:
    """Whether `url` is an SQLite database whose file is not there: nothing was ever recorded in it, or it is lost."""
    path = _sqlite_path(url)
    return path is not None and not path.exists()


def upgrade(url: str, revision: str = "head") -> None:
    """Create or upgrade the tables of the database at `url`: all of them, or nothing.

    Raises:
        ProvenanceError: it cannot be reached or written, or a newer modalign or another program made its tables.
    """
    from alembic import command  # takes longer to import than all of `--help`

    if path := _sqlite_path(url):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # a new directory is for its owner alone
        except OSError as error:
            raise ProvenanceError(f"database {redacted(url)}: cannot create its directory: {error}") from error
    _migrate(url, command.upgrade, revision)


def downgrade(url: str, revision: str) -> None:
    """Downgrade the tables to `revision`. The revision `base` drops all tables with their rows."""
    from alembic import command

    _migrate(url, command.downgrade, revision)


def _migrate(url: str, run: Callable[["Config", str], None], revision: str) -> None:
    database = Database(url)
    try:
        database.revision()
        with _translated(url):
            run(alembic_config(database.engine), revision)
    finally:
        database.close()


def alembic_config(engine: Engine) -> "Config":
    """Return Alembic's configuration for the database behind `engine`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["engine"] = engine
    return config


def _engine(url: str, copies: ExitStack) -> Engine:
    try:
        parsed = _parsed(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql", "postgres"):
            raise ValueError(f"got one of {parsed.get_backend_name()}")
        if "@" in (parsed.host or ""):  # drivers would print the half of the password that they take for the host
            raise ValueError("write an @ in the password as %40")
        if parsed.drivername in ("postgresql", "postgres"):  # psycopg 3 is the driver that our extra installs
            parsed = parsed.set(drivername="postgresql+psycopg")
        options: dict[str, Any] = {}
        if parsed.get_driver_name() == "psycopg":
            options["connect_args"] = {"client_encoding": "utf8"}  # not what PGCLIENTENCODING says
        if (path := _sqlite_path(url)) and _read_only(path):
            parsed = _read_only_url(path, copies)
        # Test a connection before use: a restarted server or a firewall may have cut it.
        engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite", **options)
    except ImportError as error:
        raise missing_package(error, f"database {redacted(url)}") from None
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        why = without_secrets(" ".join(str(error).split()))
        raise SettingsError(
            f"database {redacted(url)}: expected an SQLAlchemy URL such as sqlite:///PATH or "
            f"postgresql://USER@HOST/NAME; {why}"
        ) from None

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy asks anything
    def prepare(connection: Any, _: object) -> None:
        if engine.dialect.name == "sqlite":
            _harden_sqlite(connection)
        elif (encoding := _encoding(connection)) != "UTF8":
            connection.close()
            raise ProvenanceError(
                f"database {redacted(url)}: expected the encoding UTF8, found {encoding}, which cannot store every key "
                "and caption; create the database with `CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0`",
                code="database-encoding",
            )

    return engine


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ValueError:  # its message quotes the text in the place of the port, which may be a password
        raise ValueError("the port is no number") from None


def _harden_sqlite(connection: Any) -> None:
    # A second writer waits instead of failing. A commit survives a power cut.
    for pragma in (f"busy_timeout={LOCK_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    # Readers do not stop a writer. The mode is kept in the file: a database that is read-only has it or does without.
    # One that another process is switching, or has locked, is switched by that process or by the next connection.
    with suppress(OperationalError):
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode=WAL")


def _encoding(connection: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_encoding")
        (encoding,) = cursor.fetchone()
    connection.rollback()
    return encoding.decode() if isinstance(encoding, bytes) else str(encoding)


def _read_only(path: Path) -> bool:
    return path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def _read_only_url(path: Path, copies: ExitStack) -> URL:
    # SQLite reads a database in WAL mode only with two files beside it, which it cannot create here. Without a log of
    # changes, the file alone is the database. With one and without its index, nobody has the database open.
    log, index = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    query = {"uri": "true", "mode": "ro"}
    if not (log.exists() and log.stat().st_size):
        query["immutable"] = "1"
    elif not index.exists():
        path = _copied(path, log, copies)
    return URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=query)


def _copied(path: Path, log: Path, copies: ExitStack) -> Path:
    try:
        directory = copies.enter_context(TemporaryDirectory(prefix="modalign-"))
        for file in (path, log):
            copyfile(file, Path(directory, file.name))
    except OSError as error:
        raise ProvenanceError(
            f"database {path}: it is read-only and has a log of changes, so it is read from a copy, which cannot be "
            f"made: {error}; name a directory for temporary files that has room in TMPDIR"
        ) from error
    return Path(directory, path.name)


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
        if "disk is full" in cause:  # as SQLite says it
            raise ProvenanceError(
                f"database {redacted(url)}: {cause}; free disk space there, then run again",
                code=OutOfResourcesError.code,
            ) from error
        raise ProvenanceError(
            f"database {redacted(url)}: {without_secrets(cause)}; check that it runs and that "
            "MODALIGN_DATABASE_URL names it"
        ) from error
    except (JSONDecodeError, RecursionError) as error:  # objects nested too deeply
        raise ProvenanceError(
            f"database {redacted(url)}: a JSON column holds something else ({error}): something other than modalign "
            "changed it; restore it from a backup"
        ) from error
