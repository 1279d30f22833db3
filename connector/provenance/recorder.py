"""The provenance database as the rest of the connector sees it: one object, a table group an attribute."""

from pathlib import Path
from typing import Self

from connector.provenance.artifacts import Artifacts
from connector.provenance.audits import Audits
from connector.provenance.database import Database
from connector.provenance.ledger import Ledger
from connector.provenance.releases import Releases
from connector.provenance.runs import Runs
from connector.provenance.stores import Stores


class Provenance:
    """What was encoded, fitted, written and audited, with what, by which run. Use as a context manager."""

    def __init__(self, database: Database):
        self.database = database
        self.runs = Runs(database)
        self.artifacts = Artifacts(database)
        self.ledger = Ledger(database)
        self.releases = Releases(database)
        self.audits = Audits(database)
        self.stores = Stores(database)

    @classmethod
    def open(cls, url: str, *, home: Path | None = None) -> Self:
        """Open the database at the SQLAlchemy URL `url` for the artifacts under `home`.

        Raises:
            ProvenanceError: it cannot be reached.
            NotMigratedError: its tables are missing, or of another version of modalign.
        """
        return cls(Database.open(url, home=home))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.database.close()
