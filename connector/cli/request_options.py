"""Options that take their range or their default from a field of a request."""

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import click

from alignment.bounds import intervals_of
from connector.cli.options import F, NumberRange, WholeRange, with_options
from connector.recorded_request import Request
from connector.requests import FitRequest, default_of


def range_of(request: type[Request], name: str) -> WholeRange | NumberRange:
    """Return the type of the option for a field of a request: its range is that of the field."""
    interval = intervals_of(request)[name]
    least: Any = interval.ge if interval.gt is None else interval.gt
    most: Any = interval.le if interval.lt is None else interval.lt
    ends: dict[str, Any] = {"min_open": interval.gt is not None, "max_open": interval.lt is not None}
    hint = get_type_hints(request)[name]  # also `int | None`
    whole = int in (hint, *get_args(hint))
    return WholeRange(least, most, **ends) if whole else NumberRange(least, most, **ends)


def seed_option(request: type[Request], text: str) -> Callable[[F], F]:
    """Add `--seed` to the command of `request`."""
    default = default_of(request, "seed")
    return click.option("--seed", type=range_of(request, "seed"), default=default, show_default=True, help=text)


def holdout_options(command: F) -> F:
    """Add what `fit` and `compare` share: which groups are held out, and how the others are folded."""
    options = [
        click.option(
            "--holdout",
            type=range_of(FitRequest, "holdout"),
            default=default_of(FitRequest, "holdout"),
            show_default=True,
            help="Share of the groups that the fit never sees.",
        ),
        click.option(
            "--folds",
            type=range_of(FitRequest, "folds"),
            default=default_of(FitRequest, "folds"),
            show_default=True,
            help="Folds of the cross-validation.",
        ),
        seed_option(FitRequest, "Seed of the hold-out and the folds."),
    ]
    return with_options(command, options)
