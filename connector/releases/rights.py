"""What the key of a store may do is tried before anything changes: a command that is refused leaves nothing half done.

A server shows a key only the collections that it names. So a collection that is not listed may be there all the same:
`present` tells one that is gone from one that the key does not show.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from connector.errors import AccessDeniedError
from connector.provenance.tables import ReleaseRow

if TYPE_CHECKING:
    from connector.stores.contract import Store


def present(store: "Store", rows: Sequence[ReleaseRow]) -> list[ReleaseRow]:
    """Return the releases whose collections are there.

    Raises:
        AccessDeniedError: SQL records some that the key does not show; the message names all of them.
    """
    shown = set(store.collections())
    here = {row.physical_name: row.physical_name in shown for row in rows}

    def look(name: str) -> None:
        here[name] = here[name] or store.exists(name)

    _try_all(here, look, f"the key for {store.url} does not show all that SQL records there")
    return [row for row in rows if here[row.physical_name]]


def check_may_write(store: "Store", names: Iterable[str]) -> None:
    """Return if the key may write points into all of these collections.

    Raises:
        AccessDeniedError: it may not; the message names all that it may not write into.
    """
    _try_all(names, store.check_may_write, f"the key for {store.url} may not write into all that this would change")


def check_may_manage(store: "Store", purpose: str) -> None:
    """Return if the key may create and drop collections, and change aliases.

    Args:
        store: what it is the key of.
        purpose: what needs this right, for people.

    Raises:
        AccessDeniedError: it may not.
    """
    try:
        store.check_may_manage()
    except AccessDeniedError as error:
        raise AccessDeniedError(
            f"{purpose} needs a key that may manage {store.url}; nothing was changed: {error}"
        ) from error


def shows(store: "Store", name: str) -> bool:
    """Say whether there is a collection or an alias of this name, and the key shows it."""
    try:
        return store.exists(name)
    except AccessDeniedError:
        return False


def is_hidden(store: "Store", alias: str) -> bool:
    """Say whether the key does not show an alias, so that it cannot be known what the alias names."""
    try:
        store.exists(alias)
    except AccessDeniedError:
        return True
    return False


def _try_all(names: Iterable[str], attempt: Callable[[str], None], refusal: str) -> None:
    """Try each of the collections; name all that are refused."""
    refused: dict[str, AccessDeniedError] = {}
    for name in names:
        try:
            attempt(name)
        except AccessDeniedError as error:
            refused[name] = error
    if refused:
        first = next(iter(refused.values()))
        raise AccessDeniedError(f"{refusal}: {', '.join(refused)}; nothing was changed: {first}") from first
