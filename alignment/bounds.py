"""Bounds of settings, written beside each field: `m: Annotated[int, Interval(ge=2, le=1024)]`.

pydantic reads the same annotations, and an option of the command line takes its range from them.
"""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from annotated_types import Interval


def bounds_of(model: type) -> dict[str, tuple[Any, Any]]:
    """Return the least and the largest value of every field that has bounds.

    >>> from connector.stores.layout import Layout
    >>> bounds_of(Layout)["m"]
    (2, 1024)
    """
    bounds = {}
    for name, hint in get_type_hints(model, include_extras=True).items():
        for part in (hint, *get_args(hint)):  # also within `Annotated[...] | None`
            for bound in getattr(part, "__metadata__", ()):
                if isinstance(bound, Interval):
                    bounds[name] = (bound.ge, bound.le)
    return bounds


def out_of_bounds(settings: Any) -> Iterator[str]:
    """Yield a sentence for every field whose value is out of bounds; NaN is, and None is not."""
    for name, (least, most) in bounds_of(type(settings)).items():
        value = getattr(settings, name)
        if value is not None and not least <= value <= most:
            yield f"{name}: expected {least} to {most}, got {value}"
