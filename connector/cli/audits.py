"""The command `audit`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from alignment.names import PROTOCOLS
from connector.cli.choices import METRIC, Name, PathName
from connector.cli.group import REQUIREMENT, cli
from connector.cli.opening import open_home
from connector.cli.options import (
    METRIC_HELP,
    home_options,
    json_option,
    pixels_option,
    placement_options,
    renamed_option,
)
from connector.cli.request_options import range_of, seed_option
from connector.cli.tables import print_json
from connector.progress import say
from connector.requests import AuditRequest, Scope, default_of

if TYPE_CHECKING:
    from connector.audits.result import Audit

COMMANDLINE = click.core.ParameterSource.COMMANDLINE
HOME_OPTIONS = ("--home", "--qdrant-url", "--database-url", "--device")
FILE = PathName(dir_okay=False)
SCOPE = click.Choice(get_args(Scope))


def _lengths(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 1,5,10, got {text!r}") from None


def _named_filters(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    named = {}
    for text in texts:
        name, equals, condition = text.partition("=")
        if not (name.strip() and equals):
            raise click.BadParameter(f"expected NAME=JSON, got {text!r}")
        named[name.strip()] = condition
    if len(named) < len(texts):
        raise click.BadParameter("expected a different name for each filter")
    return named


@cli.command()
@click.argument("collection")
@click.option("--pairs", metavar="SET", help="Embedding set with the labelled pairs.  [required without --history]")
@click.option(
    "--metric",
    type=METRIC,
    metavar="METRIC",
    help=METRIC_HELP + "  [default: of ready all that a promotion would switch, else the only one there is, or cosine]",
)
@click.option(
    "--release",
    default=default_of(AuditRequest, "release"),
    show_default=True,
    metavar="RELEASE",
    help="live; ready, the shadows of the newest alignment, which one promotion makes live; or the name of a release, as status shows it.",
)
@click.option(
    "-k",
    "--k",
    "ks",
    callback=_lengths,
    default=",".join(map(str, AuditRequest.ks)),
    show_default=True,
    metavar="K,K,...",
    help="Lengths of the result lists.",
)
@click.option(
    "--require",
    multiple=True,
    metavar="CONDITION",
    help="Requirement, of every release that is audited. 'recall@10>=0.4' is among held-out items alone, which is not "
    "what production finds; 'unseen recall@10>=0.4' is of new items in the whole collection, 'by caption "
    "recall@10>=0.4' of texts that search so. Also 'index:fidelity@10>=0.98' or, with --baseline, 'recall@10 "
    "drop<=0.02'. Exit with 3 if it is not met. May be repeated.",
)
@click.option(
    "--baseline",
    metavar="AUDIT",
    help="Compare with an earlier audit, query by query: last, of this release; live, of the live release; or a number that --history shows.",
)
@renamed_option("--against", "--baseline", "baseline", metavar="AUDIT")
@click.option("--queries", type=SCOPE, default=AuditRequest.queries, show_default=True, help="Items to search with.")
@click.option("--gallery", type=SCOPE, default=AuditRequest.gallery, show_default=True, help="Points to search among.")
@click.option(
    "--protocol",
    type=Name("protocol", PROTOCOLS),
    metavar="NAME",
    help=f"Benchmark to follow, {', '.join(PROTOCOLS)}; SET is its whole test split.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    callback=_named_filters,
    metavar="NAME=JSON",
    help="Also search within a Qdrant filter, as a stage of that name. May be repeated.",
)
@click.option(
    "--slice",
    "slices",
    multiple=True,
    metavar="FIELD",
    help="Also measure the queries of each value of a payload field. May be repeated.",
)
@renamed_option("--by", "--slice", "slices", multiple=True, metavar="FIELD")
@click.option(
    "--sample",
    type=range_of(AuditRequest, "sample"),
    metavar="N",
    help="Search with N queries of each modality.  [default: all]",
)
@click.option(
    "--max-qps",
    type=range_of(AuditRequest, "max_qps"),
    metavar="QPS",
    help="Most queries a second.  [default: no limit]",
)
@renamed_option("--rate", "--max-qps", "max_qps", type=range_of(AuditRequest, "max_qps"), metavar="QPS")
@seed_option(AuditRequest, "Seed of the sample, the points that are read back, the gap and the intervals.")
@click.option(
    "--report",
    type=FILE,
    metavar="FILE",
    help="Write a page for people, which needs no network; if several releases are audited, one a metric: FILE.cosine.html for FILE.html.",
)
@click.option("--prometheus", type=FILE, metavar="FILE", help="Write the measures for Prometheus' text file collector.")
@click.option("--jsonl", type=FILE, metavar="FILE", help="Append the audit as one line of JSON.")
@placement_options("all points of the release are compared with the queries")
@click.option("--history", is_flag=True, help="Show earlier audits instead of making one.")
@click.option(
    "-n", "limit", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Earlier audits to show."
)
@pixels_option
@json_option
@home_options
def audit(
    prometheus: Path | None,
    jsonl: Path | None,
    history: bool,
    limit: int,
    as_json: bool,
    where: Mapping[str, Any],
    **given: Any,
) -> None:
    """Measure a release with pairs that the fit never saw, and name the stage of the search that loses recall.

    The tables show Recall@K in both directions, of held-out items alone, and of new and known items in the whole
    collection; what the lowering, the index, quantization and filters lose of it; and the modality gap. A release that
    does not hold what it should is broken: nothing of it is measured, and the exit code is 3.

    --release ready audits every metric that `promote` would switch: one audit a metric, and --require holds for each.
    """
    _refuse_contradictions(_given_options())
    if history:
        _print_history(given["collection"], given["metric"], limit, as_json, given["report"], where)
        return
    request = AuditRequest(**given)
    from connector.cli.audit_tables import print_audit, print_verdicts  # these load numpy
    from connector.provenance.runs import RunResult
    from connector.reports import audit_json
    from connector.reports.audit_page import audit_pages
    from connector.reports.output_files import append_line, claim_file
    from connector.reports.prometheus import write_prometheus

    _refuse_files(request.report, prometheus, jsonl)
    for path in filter(None, (prometheus, jsonl)):
        claim_file(path)
    with open_home(where) as home:
        result = home.audit(request)
    audits = result.value
    results = [RunResult(result.run, result.counts, audit) for audit in audits]
    if prometheus:
        write_prometheus(prometheus, audits)
    if jsonl:
        append_line(jsonl, "\n".join(map(audit_json.log_line, results)))
    for page in audit_pages(request.report, [audit.row for audit in audits]):
        say(f"wrote {page}")
    if as_json:
        print_json(audit_json.documents(results) if request.is_of_promotion else audit_json.document(results[0]))
    else:
        for audit in audits:
            print_audit(audit)
        if len(audits) > 1:
            print_verdicts(audits)
    if as_json or not sys.stdout.isatty():  # the tables already say it on a terminal
        _say_failures(audits)
    if any(audit.broken or audit.failures for audit in audits):
        sys.exit(REQUIREMENT)


def _say_failures(audits: Sequence["Audit"]) -> None:
    """Say on stderr what is broken and which requirements are not met; of which release, if there are several."""
    for audit in audits:
        of = f"{audit.row.physical_name}: " if len(audits) > 1 else ""
        if audit.broken:
            say(f"{of}broken: {audit.broken}")
        for failure in audit.failures:
            say(f"{of}not met: {failure.requirement.text}: {failure.why}{audit.among(failure.requirement)}")


def _refuse_contradictions(given: set[str]) -> None:
    """Refuse options that have no effect, or make no sense, beside each other."""
    if "--history" in given:
        if others := sorted(given - {"--history", "--metric", "-n", "--report", "--json", *HOME_OPTIONS}):
            raise click.UsageError(f"--history makes no audit: leave {', '.join(others)} out")
    elif "-n" in given:
        raise click.UsageError("-n goes with --history; to search with fewer queries, give --sample")
    elif "--pairs" not in given:
        raise click.UsageError("expected --pairs SET, or --history")
    elif "--protocol" in given and {"--queries", "--gallery"} & given:
        raise click.UsageError("--protocol sets queries and gallery: leave --queries and --gallery out")


def _refuse_files(report: Path | None, prometheus: Path | None, jsonl: Path | None) -> None:
    written = [path.absolute() for path in (report, prometheus, jsonl) if path is not None]
    if len(set(written)) < len(written):
        raise click.UsageError("--report, --prometheus and --jsonl write different files: name one for each")
    if prometheus is not None and prometheus.suffix != ".prom":
        raise click.BadParameter(
            f"expected a file that ends in .prom, as the collector does, got {prometheus.name}",
            param_hint="--prometheus",
        )


def _given_options() -> set[str]:
    """Return the long names of the options that were given."""
    context = click.get_current_context()
    return {
        option.opts[-1]
        for option in context.command.params
        if isinstance(option, click.Option)
        if context.get_parameter_source(option.name or "") is COMMANDLINE
    }


def _print_history(
    collection: str,
    metric: str | None,
    limit: int,
    as_json: bool,
    report: Path | None,
    where: Mapping[str, Any],
) -> None:
    from connector.cli.audit_tables import print_history  # these load numpy
    from connector.reports import audit_json

    with open_home(where) as home:
        audits = home.audits(collection, metric=metric, limit=limit)
        command = home.next_audit(collection)
    if report:
        from connector.reports.history_page import write_history_page  # loads Pillow and templates

        write_history_page(report, collection, audits)
        say(f"wrote {report}")
    if as_json:
        print_json(audit_json.history_document(audits))
    elif audits:
        print_history(audits)
    else:
        say(f"no release of {collection} was audited yet; run `{command}`")
