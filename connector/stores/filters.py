"""Filters from JSON."""

import json
from typing import TYPE_CHECKING

from connector.errors import FilterError

if TYPE_CHECKING:
    from qdrant_client.models import Filter


def parse_filter(text: str, *, what: str = "filter") -> "Filter":
    """Read a filter in Qdrant's own JSON; `what` names it in errors.

    Raises:
        FilterError: it is no JSON or no filter.
    """
    from pydantic import ValidationError
    from qdrant_client.models import Filter  # takes a second to import

    example = '{"must": [{"key": "language", "match": {"value": "en"}}]}'
    try:
        return Filter.model_validate(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise FilterError(f"{what} is no JSON ({error}); expected a Qdrant filter such as {example}") from None
    except ValidationError as error:
        places = sorted({".".join(map(str, e["loc"][:2])) or "(top)" for e in error.errors()})
        raise FilterError(
            f"{what} is not valid at {', '.join(places)}; expected a Qdrant filter such as {example}"
        ) from None
