"""Bounds of settings, written beside each field: `m: Annotated[int, Interval(ge=2, le=1024)]`.

pydantic reads the same annotations, and an option of the command line takes its range from them.
"""

from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

from annotated_types import Interval


def bounds_of(model: type) -> dict[str, tuple[Any, Any]]:
    """Return the least and the largest value of every field that has bounds.

    >>> from connector.stores.layout import Layout
    >>> bounds_of(Layout)["m"]
    (2, 1024)
    """
    return {name: (interval.ge, interval.le) for name, interval in intervals_of(model).items()}


def intervals_of(model: type) -> dict[str, Interval]:
    """Return the interval of every field that has one; its ends may be open, or not there."""
    intervals = {}
    for name, hint in get_type_hints(model, include_extras=True).items():
        for part in (hint, *get_args(hint)):  # also within `Annotated[...] | None`
            for bound in getattr(part, "__metadata__", ()):
                if isinstance(bound, Interval):
                    intervals[name] = bound
    return intervals


def out_of_bounds(settings: Any) -> Iterator[str]:
    """Yield a sentence for every field whose value is out of bounds; NaN is, and None is not."""
    for name, interval in intervals_of(type(settings)).items():
        value = getattr(settings, name)
        if value is not None and not all(holds(value) for _, holds in _limits(interval)):
            yield f"{name}: expected {' '.join(words for words, _ in _limits(interval))}, got {value}"


def _limits(interval: Interval) -> list[tuple[str, Callable[[Any], bool]]]:
    """Say in words, and as a test, what each end of an interval asks for."""
    limits: list[tuple[str, Callable[[Any], bool]]] = []
    if interval.ge is not None:
        words = f"{interval.ge}" if interval.le is not None else f"at least {interval.ge}"
        limits.append((words, lambda value: value >= interval.ge))
    if interval.gt is not None:
        limits.append((f"above {interval.gt}", lambda value: value > interval.gt))
    if interval.le is not None:
        words = f"to {interval.le}" if interval.ge is not None else f"at most {interval.le}"
        limits.append((words, lambda value: value <= interval.le))
    if interval.lt is not None:
        limits.append((f"below {interval.lt}", lambda value: value < interval.lt))
    return limits
