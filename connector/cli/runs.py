"""Commands on runs: rejects, demo."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignment.modality import DIRECTIONS
from alignment.plurals import counted
from alignment.retrieval.cutoffs import ENDS, K
from connector.cli.choices import PathName
from connector.cli.group import cli
from connector.cli.opening import exit_for_rejects, load_settings, open_home, say_if_new, shortest
from connector.cli.options import home_options, json_option, pixels_option, rejects_option
from connector.cli.tables import json_text, print_json, print_rejects, print_result, print_table, show
from connector.progress import say
from connector.reports.output_files import write_file

if TYPE_CHECKING:
    from connector.provenance.tables import RejectRow


@cli.command()
@click.argument("run", type=click.IntRange(1, 2**31 - 1), required=False)
@click.option("--by-reason", is_flag=True, help="Count the rejects by stage and reason.")
@click.option(
    "--export",
    "to",
    type=PathName(allow_dash=True),
    metavar="FILE",
    help="Write the rejects as JSONL into FILE; - is stdout.",
)
@click.option(
    "--retry", is_flag=True, help="Run the command of RUN again: rejects are tried again, other items are skipped."
)
@pixels_option
@rejects_option
@json_option
@home_options
def rejects(
    run: int | None,
    by_reason: bool,
    to: Path | None,
    retry: bool,
    max_rejects: int,
    as_json: bool,
    where: Mapping[str, Any],
) -> None:
    """List the items that RUN rejected, with the reasons. Without RUN, take the last run that rejected any."""
    if by_reason + (to is not None) + retry > 1:
        raise click.UsageError("--by-reason, --export and --retry exclude each other")
    with open_home(where) as home:
        say_if_new(home, run)
        rejected = home.rejects(run)
        result = home.retry(rejected.run) if retry and rejected.run is not None else None
    number, rows = rejected.run, [_reject_row(row) for row in rejected.rows]
    if result is not None:
        print_result(result, {"retried": number, "refused_then": len(rows)}, as_json)
        exit_for_rejects(result, max_rejects)
        return
    tally = Counter((row["stage"], row["reason"]) for row in rows)
    counts = [{"stage": stage, "reason": reason, "count": n} for (stage, reason), n in tally.most_common()]
    if to is not None:
        lines = [{"run": number, **row} for row in rows]
        if str(to) == "-":
            click.echo("".join(f"{json_text(line)}\n" for line in lines), nl=False)
        else:
            write_file(to, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            say(f"wrote {counted(rows, 'reject')} to {to}")
    elif as_json:
        print_json({"run": number, **({"by_reason": counts} if by_reason else {"rejects": rows})})
    elif number is None:
        show("no run has rejected anything")
    elif by_reason:
        print_table(counts, f"rejects of run {number} by reason")
    else:
        print_rejects(rows, number)


def _reject_row(row: "RejectRow") -> dict[str, Any]:
    columns = ("stage", "reason", "source", "position", "key", "modality", "detail")
    return {name: getattr(row, name) for name in columns}


@cli.command()
@json_option
@home_options
def demo(as_json: bool, where: Mapping[str, Any]) -> None:
    """Run everything once on 1,914 emoji: encode, fit, push under every metric, search, audit. Takes a quarter to half an hour on two cores.

    Needs the extra packages of `pip install 'modalign[demo]'`, and no network, server or GPU.
    """
    # They load torch, which `--help` need not wait for.
    from connector.audits.kinds import KINDS
    from connector.demo.emoji import AMONG_ALL, run_demo

    result = run_demo(load_settings(where))
    rows = list(result.rows())
    if as_json:
        document = {"home": str(result.home), "page": str(result.page), "seconds": round(result.seconds, 1)}
        print_json({**document, "table": rows})
        return
    shown = [
        {
            "metric": row["metric"],
            "finds": f"{DIRECTIONS[row['direction']][1]}s",
            **{f"R@{k}": round(row[f"recall@{k}"], 3) for k in ENDS},
            **{kind: round(row[f"{kind} {AMONG_ALL}"], 3) for kind in KINDS},
            f"fid@{K}": round(row[f"fidelity@{K}"], 3),
        }
        for row in rows
    ]
    print_table(
        shown,
        f"Recall@K among {counted(rows[0]['queries'], 'held-out pair')}, chance {rows[0][f'chance@{K}']:.3f}; Recall@{K} of unseen and "
        f"of seen items among all, and their harmonic mean; fidelity@{K} of the held-out queries",
    )
    say("cosine, dot and euclid agree: they order unit vectors alike")
    modalign = "modalign" if shutil.which("modalign") else shortest(Path(sys.argv[0]))
    option = "" if where["home"] is None else f" --home {where['home']}"
    say("")
    say(f"Look at {result.page}")
    say(f"Then try, in the home {result.home}:")
    say("")
    say(f"  {modalign} search emoji 'a red heart' -k 5{option}")
    say(f"  {modalign} search emoji {shortest(result.example)} --html found.html{option}")
    say(f"  {modalign} audit emoji --pairs emoji --require 'recall@10>=0.4'{option}")
