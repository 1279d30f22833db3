"""Options that commands share."""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from typing_extensions import override

from alignment.modality import Modality
from alignment.names import CLOSED_FORMS, HEADS, METRICS
from connector.cli.choices import DEVICE, Name, PathName
from connector.corpora import FORMAT_NAMES
from connector.progress import say
from connector.settings import MAX_PIXELS, MOST_PIXELS
from connector.stores.deadlines import within

F = TypeVar("F", bound=Callable[..., Any])
METRIC_HELP = (
    f"Metric that compares aligned vectors: {', '.join(METRICS)}. Parameters are given as in 'chi2(map=split)'; "
    "'dot+nnn' corrects hubness."
)
METHOD_HELP = f"a closed form ({', '.join(CLOSED_FORMS)}) or a trained head ({', '.join(HEADS)})"


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read a time such as `90s`, `10m` or `2h`."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value)
    if match is None or not float(match[1]):
        raise click.BadParameter(f"expected a time above zero such as 90s, 10m or 2h, got {value!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def timeout_seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read a time such as `2s` or `10m`; a number alone is of seconds."""
    plain = value is not None and value.replace(".", "", 1).isdecimal()
    return seconds(ctx, param, f"{value}s" if plain else value)


class WholeRange(click.IntRange):
    """Whole numbers between bounds, which are named to whoever gives something else."""

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"expected a whole number in the range {self._describe_range()}, got {value!r}.", param, ctx)


class NumberRange(click.FloatRange):
    """Numbers between bounds, which are named to whoever gives something else, NaN among it."""

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = super().convert(value, param, ctx)
        except click.BadParameter:
            number = math.nan
        if math.isnan(number):
            self.fail(f"expected a number in the range {self._describe_range()}, got {value!r}.", param, ctx)
        return number


def renamed_option(old: str, new: str, name: str, **attributes: Any) -> Callable[[F], F]:
    """Keep the old name of an option for one release, hidden, with a line on stderr.

    Both names on one command line are refused: one of the values would be lost.

    Args:
        old: the old name.
        new: the option that replaces it.
        name: parameter of the command, which the option `new` fills.
        **attributes: of the option `new`.
    """

    own = f"old_{name}"  # the parser cannot tell two options of one name apart

    class OldName(click.Option):
        """The old name; `opts` holds what the command line gave, by parameter."""

        @override
        def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> Any:
            if own in opts and name in opts:
                raise click.UsageError(f"{old} is the old name of {new}: expected one of the two, got both", ctx)
            return super().handle_parse_result(ctx, opts, args)

    def forward(context: click.Context, option: click.Parameter, value: Any) -> None:
        if context.get_parameter_source(own) is click.core.ParameterSource.COMMANDLINE:
            say(f"{old} is now {new}; the old name goes in the next release")
            context.params[name] = value

    return click.option(
        old,
        own,
        cls=OldName,
        hidden=True,
        expose_value=False,
        callback=forward,
        help=f"Old name of {new}.",
        **attributes,
    )


def home_options(command: F) -> F:
    """Add the options that say where things are, and hand them over as the mapping `where`."""
    options = [
        click.option(
            "--home",
            type=PathName(),
            envvar="MODALIGN_HOME",
            show_envvar=True,
            help="Home directory of sets, alignments and databases.  [default: ~/.modalign]",
        ),
        click.option(
            "--qdrant-url",
            metavar="URL",
            envvar="MODALIGN_QDRANT_URL",
            show_envvar=True,
            help="edge:DIR, http(s)://HOST:PORT or grpc(s)://HOST:PORT; several nodes of a cluster with commas between.  [default: edge:HOME/qdrant]",
        ),
        click.option(
            "--database-url",
            metavar="URL",
            envvar="MODALIGN_DATABASE_URL",
            show_envvar=True,
            help="SQLAlchemy URL of the provenance database.  [default: SQLite in the home]",
        ),
        click.option(
            "--device",
            type=DEVICE,
            metavar="DEVICE",
            envvar="MODALIGN_DEVICE",
            show_envvar=True,
            help="auto, cpu, cuda, cuda:N or mps.  [default: auto]",
        ),
        click.option(
            "--timeout",
            callback=timeout_seconds,
            metavar="TIME",
            help="Fail when a Qdrant server has not answered so long after the first request, such as 2s or 10m.  [default: each request is tried for two minutes]",
        ),
    ]

    @functools.wraps(command)
    def with_where(*args: Any, home: Path | None, timeout: float | None, **given: Any) -> Any:
        click.get_current_context().with_resource(within(timeout))
        names = ("qdrant_url", "database_url", "device", "max_pixels")
        where = {"home": home} | {name: given.pop(name) for name in names if name in given}
        return command(*args, where=where, **given)

    return with_options(cast(F, with_where), options)


def pixels_option(command: F) -> F:
    """Add `--max-pixels`, for commands that decode images. It stands above `home_options`, which hands it over."""
    option = click.option(
        "--max-pixels",
        type=WholeRange(1, MOST_PIXELS),
        envvar="MODALIGN_MAX_PIXELS",
        show_envvar=True,
        help=f"Most pixels of an image to decode, which takes up to 20 bytes of memory each.  [default: {MAX_PIXELS}]",
    )
    return with_options(command, [option])


def json_option(command: F) -> F:
    """Add `--json`."""
    return with_options(command, [click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")])


def rejects_option(command: F) -> F:
    """Add `--max-rejects`."""
    text = "Exit with 4 when more items than this were rejected."
    return with_options(
        command, [click.option("--max-rejects", type=click.IntRange(0), default=0, show_default=True, help=text)]
    )


def yes_option(command: F) -> F:
    """Add `--yes`."""
    return with_options(command, [click.option("--yes", is_flag=True, help="Do not ask before deleting anything.")])


def corpus_options(command: F) -> F:
    """Add what `encode` and `ingest` share: how a corpus is read, where that is not plain."""
    options = [
        click.option(
            "--format",
            type=Name("format", FORMAT_NAMES),
            metavar="FORMAT",
            help=f"Format of CORPUS: {', '.join(FORMAT_NAMES)}.  [default: recognised]",
        ),
        click.option(
            "--images",
            type=PathName(),
            metavar="DIR",
            help="Folder that the paths of images in a file are relative to.  [default: of a manifest, its own; of a coco, karpathy or flickr file, the usual ones beside it]",
        ),
        click.option(
            "--key",
            metavar="COLUMN",
            help="Column of a manifest with the keys, which may be its images.  [default: key]",
        ),
        click.option(
            "--image", metavar="COLUMN", help="Column with the paths of images; '' if there is none.  [default: image]"
        ),
        click.option(
            "--caption",
            multiple=True,
            metavar="COLUMN",
            help="Column with captions; '' if there is none. May be repeated: each is a caption.  [default: caption]",
        ),
        click.option(
            "--group",
            metavar="COLUMN",
            help="Column that says which rows show the same thing; payloads hold it as group.  [default: group]",
        ),
        click.option(
            "--key-rule",
            type=click.Choice(["first-dot", "last-dot"]),
            help="Where the key of a webdataset sample ends in the names of its members.  [default: first-dot; a dotted name that may be a sample of its own is rejected]",
        ),
        click.option(
            "--quoting/--no-quoting",
            default=None,
            help="Whether quotes enclose fields of a CSV or TSV.  [default: in a CSV]",
        ),
    ]
    return with_options(command, options)


def placement_options(work: str) -> Callable[[F], F]:
    """Add where work is done, such as "CORPUS is encoded": `--on`, `--workers` and `--gpus-per-worker`."""
    options = [
        click.option(
            "--on",
            metavar="WHERE",
            default="local",
            show_default=True,
            help=f"Where {work}: local, this process; local:N, N processes of this machine; ray://HOST:10001, a Ray cluster; auto, the cluster that this machine belongs to. The result is the same. docs/scale.md explains it.",
        ),
        click.option(
            "--workers",
            metavar="MIN:MAX",
            help="Begin with the first worker and use no more than MAX; fewer than MIN for ten minutes is an error.  [default: 1, and as many as there is room for]",
        ),
        click.option(
            "--gpus-per-worker",
            type=float,
            metavar="SHARE",
            default=0.0,
            show_default=True,
            help="GPUs that each worker takes, such as 1 or 0.5.",
        ),
    ]
    return lambda command: with_options(command, options)


def with_options(command: F, options: Sequence[Callable[[F], F]]) -> F:
    """Add options to a command, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def assignments(texts: Iterable[str], option: str) -> dict[str, str]:
    """Read `NAME=VALUE` texts, which `option` was given."""
    given = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise click.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint=option)
        given[name] = value
    return given


def by_modality(image: str | None, text: str | None) -> dict[Modality, str]:
    """Return what was given for each modality."""
    given: dict[Modality, str | None] = {"image": image, "text": text}
    return {modality: value for modality, value in given.items() if value}
