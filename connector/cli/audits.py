"""The command `audit`."""

import sys
from pathlib import Path
from typing import Any

import click

from connector.cli.group import REQUIREMENT, _home, cli
from connector.cli.options import METRIC_HELP, home_options, json_option
from connector.cli.tables import print_json
from connector.progress import say

COMMANDLINE = click.core.ParameterSource.COMMANDLINE
HOME_OPTIONS = ("--home", "--qdrant-url", "--database-url", "--device")


@cli.command()
@click.argument("collection")
@click.option("--pairs", metavar="SET", help="Embedding set with the labelled pairs.  [required, but for --history]")
@click.option("--metric", metavar="METRIC", help=METRIC_HELP + "  [default: the only one there is, or cosine]")
@click.option(
    "--release",
    "which",
    default="live",
    show_default=True,
    metavar="RELEASE",
    help="live; ready, the shadow of the newest alignment; or a release's own name, as status shows it.",
)
@click.option("--k", "ks", default="1,5,10", show_default=True, metavar="K,K,...", help="Lengths of the result lists.")
@click.option(
    "--require",
    "requirements",
    multiple=True,
    metavar="CONDITION",
    help="For example 'recall@10>=0.4', 'index:fidelity@10>=0.98' or, with --against, 'recall@10 drop<=0.02'; exit "
    "with 3 if it is not met. May be repeated.",
)
@click.option(
    "--against",
    metavar="AUDIT",
    help="Compare with an earlier audit, query by query: last, of this release; live, of the live release; or a number "
    "that --history shows.",
)
@click.option(
    "--queries",
    type=click.Choice(["held-out", "all"]),
    help="Which items to ask with.  [default: held-out]",
)
@click.option(
    "--gallery",
    type=click.Choice(["held-out", "all"]),
    help="Which points to search among.  [default: held-out]",
)
@click.option(
    "--protocol",
    metavar="NAME",
    help="coco-5k, coco-1k or flickr30k: ask and search as this benchmark does; SET is its whole test split.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="NAME=JSON",
    help="Also search within a Qdrant filter, as a stage of that name. May be repeated.",
)
@click.option(
    "--by",
    multiple=True,
    metavar="FIELD",
    help="Also measure the queries of each value of a payload field apart. May be repeated.",
)
@click.option(
    "--sample", type=click.IntRange(1), metavar="N", help="Ask with N queries of each modality.  [default: all]"
)
@click.option("--rate", type=float, metavar="QPS", help="Ask at most so many queries a second.  [default: no limit]")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the sample, the points that are read back, the gap and the intervals.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page for people, which needs no network.",
)
@click.option(
    "--prometheus",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the measures for Prometheus' text file collector.",
)
@click.option(
    "--jsonl",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append the audit as one line of JSON.",
)
@click.option("--history", "past", is_flag=True, help="Show the audits that were made, instead of making one.")
@click.option(
    "-n", "limit", type=click.IntRange(1, 10_000), default=30, show_default=True, help="How many of the history."
)
@json_option
@home_options
def audit(
    collection: str,
    pairs: str | None,
    metric: str | None,
    which: str,
    ks: str,
    requirements: tuple[str, ...],
    against: str | None,
    queries: str | None,
    gallery: str | None,
    protocol: str | None,
    filters: tuple[str, ...],
    by: tuple[str, ...],
    sample: int | None,
    rate: float | None,
    seed: int,
    report: Path | None,
    prometheus: Path | None,
    jsonl: Path | None,
    past: bool,
    limit: int,
    as_json: bool,
    **where: Any,
) -> None:
    """Measure a release against the labels of pairs that the fit never saw, and say which stage loses what.

    Recall@K in both directions; what the lowering, the index, quantization and filters lose of it; the modality gap. A
    release that does not hold what it should is broken: nothing of it is measured, and the exit code is 3.
    """
    _refuse_contradictions(_given_options())
    if past:
        _print_history(collection, metric, limit, as_json, report, where)
        return
    assert pairs is not None
    try:
        lengths = [int(part) for part in ks.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 1,5,10, got {ks!r}", param_hint="--k") from None
    named = dict(_name_and_filter(text) for text in filters)
    if len(named) < len(filters):
        raise click.BadParameter("expected a name of its own for each", param_hint="--filter")
    from connector.cli.audit_tables import print_audit  # these load numpy
    from connector.reports import audit_json
    from connector.reports.pages import claim
    from connector.reports.prometheus import write_prometheus

    _refuse_files(report, prometheus, jsonl)
    for path in filter(None, (prometheus, jsonl)):
        claim(path)
    with _home(where) as home:
        result = home.audit(
            collection,
            pairs,
            metric=metric,
            which=which,
            requirements=requirements,
            against=against,
            ks=lengths,
            queries=queries or "held-out",
            gallery=gallery or "held-out",
            protocol=protocol,
            filters=named,
            by=by,
            sample=sample,
            rate=rate,
            seed=seed,
            report=report,
        )
    found = result.value
    if prometheus:
        write_prometheus(prometheus, result)
    if jsonl:
        audit_json.append_line(jsonl, result)
    _say_page(report)
    if as_json:
        print_json(audit_json.document(result))
    else:
        print_audit(found)
    if as_json or not sys.stdout.isatty():  # who sees the table has read it there
        if found.broken:
            say(f"broken: {found.broken}")
        for failure in found.failures:
            say(f"not met: {failure.requirement.text}: {failure.why}")
    if found.broken or found.failures:
        sys.exit(REQUIREMENT)


def _refuse_contradictions(given: set[str]) -> None:
    """Refuse options of an audit that are without effect, or without sense, beside each other."""
    if "--history" in given:
        if others := sorted(given - {"--history", "--metric", "-n", "--report", "--json", *HOME_OPTIONS}):
            raise click.UsageError(f"--history makes no audit: leave {', '.join(others)} out")
    elif "-n" in given:
        raise click.UsageError("-n says how much of the --history is shown; to ask with fewer queries, give --sample")
    elif "--pairs" not in given:
        raise click.UsageError("expected --pairs SET, or --history")
    elif "--protocol" in given and {"--queries", "--gallery"} & given:
        raise click.UsageError("--protocol says what is asked and searched: leave --queries and --gallery out")


def _refuse_files(report: Path | None, prometheus: Path | None, jsonl: Path | None) -> None:
    written = [path.absolute() for path in (report, prometheus, jsonl) if path is not None]
    if len(set(written)) < len(written):
        raise click.UsageError("--report, --prometheus and --jsonl write files of their own: name one for each")
    if prometheus is not None and prometheus.suffix != ".prom":
        raise click.BadParameter(
            f"the collector reads files that end in .prom, got {prometheus.name}", param_hint="--prometheus"
        )


def _given_options() -> set[str]:
    """Return the options that were given, as people write them."""
    context = click.get_current_context()
    return {
        option.opts[0]
        for option in context.command.params
        if isinstance(option, click.Option) and context.get_parameter_source(option.name or "") is COMMANDLINE
    }


def _name_and_filter(text: str) -> tuple[str, str]:
    name, equals, condition = text.partition("=")
    if not (name.strip() and equals):
        raise click.BadParameter(f"expected NAME=JSON, got {text!r}", param_hint="--filter")
    return name.strip(), condition


def _say_page(report: Path | None) -> None:
    if report:
        say(f"wrote {report}")


def _print_history(
    collection: str, metric: str | None, limit: int, as_json: bool, report: Path | None, where: dict[str, Any]
) -> None:
    from connector.cli.audit_tables import print_history  # these load numpy
    from connector.reports import audit_json
    from connector.reports.history_page import write_history_page

    with _home(where) as home:
        moments = home.audits(collection, metric=metric, limit=limit)
    if report:
        write_history_page(report, collection, moments)
    _say_page(report)
    if as_json:
        print_json(audit_json.history_document(moments))
    elif moments:
        print_history(moments)
    else:
        say(f"no release of {collection} was audited yet; run `modalign audit {collection} --pairs SET`")
