"""How a store is searched, as one value."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from qdrant_client.models import Filter


class SearchOptions(NamedTuple):
    """How a search is made; see `connector.stores.contract.Store.search`. The filter is checked and rewritten."""

    filter: "Filter | None"
    exact: bool
    ef: int | None
    with_payload: bool | Sequence[str]
    quantized: bool
    oversampling: float
    rescore: bool
    consistent: bool

    @property
    def fields(self) -> bool | list[str]:
        """`with_payload` as engines take it, which know no other sequence than a list."""
        return self.with_payload if isinstance(self.with_payload, bool) else list(self.with_payload)
