"""Settings: one frozen value, from what is given and from the environment variables `MODALIGN_*`."""

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL

from connector.errors import SettingsError
from connector.safe_text import redacted

REQUEST_SECONDS = 60
MAX_PIXELS = 100_000_000  # of an image to decode; a larger one decompresses to more than 300 MB
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class _Environment(BaseSettings):
    """What is given, then the variable `MODALIGN_NAME`, then the default.

    An empty variable counts as unset; `Settings.load` refuses those that say where data are.
    """

    model_config = SettingsConfigDict(env_prefix="MODALIGN_", env_ignore_empty=True, frozen=True)

    home: Path = Path("~/.modalign")
    qdrant_url: str | None = None
    database_url: str | None = None
    device: str = "auto"
    qdrant_api_key: str | None = None
    qdrant_ca_file: Path | None = None
    qdrant_timeout: int = Field(default=REQUEST_SECONDS, ge=1, le=99_999)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=2**40)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are.

    Attributes:
        home: directory of embedding sets, alignments and, by default, of both databases.
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
            SettingsError: a variable is invalid, or one of those that say where data are is set and empty.
        """
        given: dict[str, Any] = {"home": home, "qdrant_url": qdrant_url, "database_url": database_url}
        for name, value in given.items():
            variable = f"{_Environment.model_config['env_prefix']}{name.upper()}"
            if value == "" or (value is None and os.environ.get(variable) == ""):
                raise SettingsError(
                    f"{variable}, or --{name.replace('_', '-')}, is empty: expected where the data are. Unset it for "
                    "the default"
                )
        given |= {"device": device, "max_pixels": max_pixels}
        try:
            read = _Environment(**{name: value for name, value in given.items() if value})
        except ValidationError as error:
            (first, *_) = error.errors(include_url=False)
            name = str(first["loc"][0])
            raise SettingsError(
                f"{_Environment.model_config['env_prefix']}{name.upper()}: {first['msg']}, got {first['input']!r}"
            ) from None
        place = _expanded(read.home, "home").absolute()
        return cls(
            home=place,
            store_url=read.qdrant_url or f"edge:{place / 'qdrant'}",
            database_url=read.database_url or _sqlite_url(place / "modalign.db"),
            device=read.device,
            api_key=read.qdrant_api_key,
            ca_file=read.qdrant_ca_file and _expanded(read.qdrant_ca_file, "qdrant_ca_file"),
            timeout=read.qdrant_timeout,
            max_pixels=read.max_pixels,
        )

    def set_path(self, name: str) -> Path:
        """Directory of the embedding set `name`."""
        return self.home / "sets" / checked_name(name, "embedding set")

    def alignment_path(self, name: str) -> Path:
        """Directory of the alignment `name`."""
        return self.home / "alignments" / checked_name(name, "alignment")


def _sqlite_url(path: Path) -> str:
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


def _expanded(path: Path, name: str) -> Path:
    """Return a path with the home directory of `~` or `~user` in it."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        prefix = _Environment.model_config["env_prefix"]
        raise SettingsError(f"{prefix}{name.upper()}: {error}, got {str(path)!r}") from None
