"""Types of options that take one of the names that modalign knows: what is no such name ends in exit code 2."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from alignment.errors import ModalignError
from alignment.names import METRICS, did_you_mean
from alignment.object_storage import is_url, located
from connector.errors import EncoderError


class Name(click.ParamType[str]):
    """One of `names`, as `--method`, `--format` and `--protocol` take it."""

    name = "name"

    def __init__(self, what: str, names: Sequence[str]):
        self.what, self.names = what, names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value`, or say which names there are, and which are near."""
        if value not in self.names:
            self.fail(
                f"unknown {self.what} {value!r}{did_you_mean(value, self.names)}; "
                f"expected one of {', '.join(self.names)}",
                param,
                ctx,
            )
        return str(value)


class MetricName(Name):
    """A metric with or without parameters. Parameters are read by `alignment.metrics.parse`, once it is loaded."""

    def __init__(self) -> None:
        super().__init__("metric", METRICS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` if it begins with the name of a metric."""
        super().convert(re.split(r"[(+]", value)[0], param, ctx)
        return str(value)


class DeviceName(click.ParamType[str]):
    """A device as torch names it; whether this machine has it is found out when it is used."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` if it can name a device."""
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            self.fail(f"expected auto, cpu, cuda, cuda:N or mps, got {value!r}", param, ctx)
        return str(value)


class PathName(click.Path):
    """A path that is not empty: an empty one would be the working directory, and is an unset variable in a script."""

    def __init__(self, *, dir_okay: bool = True, allow_dash: bool = False):
        super().__init__(path_type=Path, dir_okay=dir_okay, allow_dash=allow_dash)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return `value` as a path if it names one."""
        if value == "":
            self.fail("expected a path, got an empty text; the working directory is .", param, ctx)
        if is_url(str(value)):
            try:
                return located(value)
            except ModalignError as error:
                self.fail(f"{error} [{error.code}]", param, ctx)
        return super().convert(value, param, ctx)


class EncoderSpec(click.ParamType[str]):
    """An encoder as `SCHEME:NAME`; whether there is such a model is found out when it is loaded."""

    name = "spec"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` if its scheme is one of an installed package."""
        from connector.encoding.loading import encoder_entry_point  # loads numpy

        try:
            encoder_entry_point(value)
        except EncoderError as error:
            self.fail(f"{error} [{error.code}]", param, ctx)
        return str(value)


class SeenOffsetShare(click.ParamType[float | None]):
    """A share of the gap as `--seen-offset` takes it; `auto` is None."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return a number in [0, 1], or None for `auto`."""
        try:
            share = None if value == "auto" else float(value)
        except ValueError:
            share = math.nan
        if share is not None and not 0 <= share <= 1:
            self.fail(f"expected auto or a share of the gap from 0 to 1, got {value!r}", param, ctx)
        return share


METRIC, DEVICE, ENCODER, SEEN_OFFSET = MetricName(), DeviceName(), EncoderSpec(), SeenOffsetShare()
