"""Settings: one frozen value, from what is given and from the environment variables `MODALIGN_*`."""

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

from alignment.object_storage import is_remote, is_url, located
from connector.errors import SettingsError
from connector.safe_text import redacted, split_urls

REQUEST_SECONDS = 60
MAX_PIXELS = 100_000_000  # of an image to decode; a larger one decompresses to more than 300 MB
MOST_SECONDS, MOST_PIXELS = 99_999, 2**40
HOME = "~/.modalign"
PREFIX = "MODALIGN_"  # of the environment variables
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are.

    Attributes:
        home: directory, or URL of object storage, of embedding sets, alignments and, by default, of both databases.
        store_url: `edge:DIR` for Qdrant Edge in this process, `http(s)://` or `grpc(s)://` for a server, several of
            one cluster with commas between.
        database_url: SQLAlchemy URL of the provenance database.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        api_key: of the Qdrant server; never printed, logged or stored.
        ca_file: PEM file of the authority that signed the server's certificate; None: those that the system trusts.
        timeout: seconds a request to the server may take, from 1 to 99999.
        max_pixels: of an image to decode; a larger one is a reject.
    """

    home: Path
    store_url: str
    database_url: str
    device: str = "auto"
    api_key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    timeout: int = REQUEST_SECONDS
    max_pixels: int = MAX_PIXELS

    def __repr__(self) -> str:
        """Name every field but the key, and no secret that stands in a URL."""
        shown = {field.name: getattr(self, field.name) for field in fields(self) if field.repr}
        shown |= {name: redacted(shown[name]) for name in ("store_url", "database_url")}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @classmethod
    def load(
        cls,
        *,
        home: str | Path | None = None,
        qdrant_url: str | None = None,
        database_url: str | None = None,
        device: str | None = None,
        max_pixels: int | None = None,
    ) -> Self:
        """Take what is given, then the `MODALIGN_*` variables, then the defaults under the home.

        Raises:
            SettingsError: a variable is invalid, or one of those that say where data are is set and empty; or the home
                is a file, or lies below one.
        """
        _refuse_empty(home=home, qdrant_url=qdrant_url, database_url=database_url)
        place = _expanded(_given("home", home) or HOME, "home").absolute()
        store_url, database_url = _given("qdrant_url", qdrant_url), _given("database_url", database_url)
        if is_remote(place):
            _check_servers(place, store_url, database_url)
        else:
            _check_directory(place)
        ca_file = _given("qdrant_ca_file")
        return cls(
            home=place,
            store_url=_addresses(store_url) or f"edge:{place / 'qdrant'}",
            database_url=database_url or _sqlite_url(place / "modalign.db"),
            device=_given("device", device) or "auto",
            api_key=_given("qdrant_api_key"),
            ca_file=_expanded(ca_file, "qdrant_ca_file") if ca_file else None,
            timeout=_whole("qdrant_timeout", None, REQUEST_SECONDS, MOST_SECONDS),
            max_pixels=_whole("max_pixels", max_pixels, MAX_PIXELS, MOST_PIXELS),
        )

    def set_path(self, name: str) -> Path:
        """Directory of the embedding set `name`."""
        return self.home / "sets" / checked_name(name, "embedding set")

    def alignment_path(self, name: str) -> Path:
        """Directory of the alignment `name`."""
        return self.home / "alignments" / checked_name(name, "alignment")


def _sqlite_url(path: Path) -> str:
    from sqlalchemy.engine import URL  # here, because `--help` reads defaults of settings and need not wait for it

    # A path may hold what has a meaning in a URL: %2F, ?, #
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise SettingsError(
            f"home {str(path)!r}: expected a path of UTF-8, because the URL of its database holds it; name another "
            "home, or a database with --database-url"
        ) from None
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def checked_name(name: str, what: str) -> str:
    """Return `name` if it can name a directory, a collection and a row alike.

    Raises:
        SettingsError: it cannot.

    >>> checked_name("emoji.v2", "embedding set")
    'emoji.v2'
    """
    if not NAME.fullmatch(name):
        raise SettingsError(
            f"{what} name {name!r}: expected 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    return name


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _given(name: str, value: str | Path | None = None) -> str | None:
    """Return what is given, then the variable of a setting; an empty one counts as unset."""
    return str(value) if value else os.environ.get(_variable(name)) or None


def _addresses(url: str | None) -> str | None:
    """Return the addresses of servers without white space around them, which no message would show."""
    return url if url is None or url.startswith("edge:") else ",".join(split_urls(url.strip())) or url


def _refuse_empty(**places: str | Path | None) -> None:
    """Raise a `SettingsError` for a place that is given empty, or whose variable is set and empty."""
    for name, value in places.items():
        if value == "" or (value is None and os.environ.get(_variable(name)) == ""):
            raise SettingsError(
                f"{_variable(name)}, or --{name.replace('_', '-')}, is empty: expected where the data are. Unset it "
                "for the default"
            )


def _check_directory(home: Path) -> None:
    """Raise a `SettingsError` if a home is something else than a directory, or cannot be made where it is missing."""
    there = next((path for path in (home, *home.parents) if os.path.lexists(path)), home)
    if os.path.lexists(there) and not there.is_dir():
        what = "leads nowhere" if not there.exists() else "is no directory"
        raise SettingsError(
            f"home {str(home)!r}: {str(there)!r} {what}; expected a directory, or a path at which one can be made; "
            f"name it by --home or {_variable('home')}"
        )


def _check_servers(home: Path, store_url: str | None, database_url: str | None) -> None:
    """Raise a `SettingsError` if a home in object storage has a database or a store that is a file or a directory."""
    if database_url is None or database_url.startswith("sqlite"):
        raise SettingsError(
            f"home {home}: expected the URL of a database server, because SQLite keeps no file in object storage; name "
            f"one by --database-url or {_variable('database_url')}, such as postgresql://HOST/modalign",
            code="home-needs-database",
        )
    if store_url is None or store_url.startswith("edge:"):
        raise SettingsError(
            f"home {home}: expected the URL of a Qdrant server, because Qdrant Edge keeps no files in object storage; "
            f"name one by --qdrant-url or {_variable('qdrant_url')}",
            code="home-needs-server",
        )


def _whole(name: str, value: int | None, default: int, most: int) -> int:
    """Return what is given, then the variable of a setting, then `default`: a whole number from 1 to `most`."""
    text = str(value) if value is not None else _given(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,20}", text) or not 1 <= int(text) <= most:
        raise SettingsError(f"{_variable(name)}: expected a whole number from 1 to {most}, got {text!r}")
    return int(text)


def _expanded(path: str, name: str) -> Path:
    """Return a path with the home directory of `~` or `~user` in it; a URL is the place that it names."""
    if is_url(path):
        return located(path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"{_variable(name)}: {error}, got {path!r}") from None
