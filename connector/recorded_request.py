"""What all requests share: SQL records their fields, and a retry rebuilds them."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from alignment.bounds import out_of_bounds
from alignment.object_storage import located
from connector.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Request:
    """Base of all requests. Paths become absolute, so that a retry finds them from any directory.

    Attributes:
        command: name of the command in SQL.
    """

    command: ClassVar[str]

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.type in (Path, Path | None) and value is not None:
                object.__setattr__(self, entry.name, located(value))
        for wrong in out_of_bounds(self):
            raise SettingsError(wrong)

    @property
    def parameters(self) -> dict[str, Any]:
        """What SQL records: the fields by their names."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Rebuild a request from what SQL recorded.

        Fields that an older version did not record get their defaults; names that are no longer fields are ignored.

        Raises:
            SettingsError: a field without a default was not recorded.
        """
        names = [entry.name for entry in fields(cls)]
        required = [e.name for e in fields(cls) if e.default is MISSING and e.default_factory is MISSING]
        if missing := [name for name in required if name not in parameters]:
            raise SettingsError(
                f"expected recorded parameters {', '.join(required)} of `modalign {cls.command}`, got none for "
                f"{', '.join(missing)}; run the command again by hand"
            )
        return cls(**{name: parameters[name] for name in names if name in parameters})
