"""Settings: one frozen value, and the only place that reads the environment."""

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

from connector.errors import SettingsError
from connector.safe_text import redacted

REQUEST_SECONDS = 60
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are.

    Attributes:
        home: directory of embedding sets, alignments and, by default, of both databases.
        store_url: `edge:DIR` for Qdrant Edge in this process, `http(s)://` or `grpc(s)://` for a server.
        database_url: SQLAlchemy URL of the provenance database.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        api_key: of the Qdrant server; never printed, logged or stored.
        ca_file: PEM file of the authority that signed the server's certificate; None: those that the system trusts.
        timeout: seconds a request to the server may take.
    """

    home: Path
    store_url: str
    database_url: str
    device: str = "auto"
    api_key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    timeout: int = REQUEST_SECONDS

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
    ) -> Self:
        """Take what is given, then the `MODALIGN_*` variables, then the defaults under the home."""
        environment = os.environ
        place = Path(home or environment.get("MODALIGN_HOME") or "~/.modalign").expanduser().absolute()
        return cls(
            home=place,
            store_url=qdrant_url or environment.get("MODALIGN_QDRANT_URL") or f"edge:{place / 'qdrant'}",
            database_url=(
                database_url or environment.get("MODALIGN_DATABASE_URL") or f"sqlite:///{place / 'modalign.db'}"
            ),
            device=device or environment.get("MODALIGN_DEVICE") or "auto",
            api_key=environment.get("MODALIGN_QDRANT_API_KEY") or None,
            ca_file=Path(ca_file).expanduser() if (ca_file := environment.get("MODALIGN_QDRANT_CA_FILE")) else None,
            timeout=_seconds(environment.get("MODALIGN_QDRANT_TIMEOUT") or str(REQUEST_SECONDS)),
        )

    def set_path(self, name: str) -> Path:
        """Directory of the embedding set `name`."""
        return self.home / "sets" / checked_name(name, "embedding set")

    def alignment_path(self, name: str) -> Path:
        """Directory of the alignment `name`."""
        return self.home / "alignments" / checked_name(name, "alignment")


def _seconds(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text):
        raise SettingsError(f"MODALIGN_QDRANT_TIMEOUT: expected whole seconds from 1 to 99999, got {text!r}")
    return int(text)


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
