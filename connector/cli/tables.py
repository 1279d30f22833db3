"""Results as tables for people and as JSON for machines: documents go to stdout, everything else to stderr."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignment.plurals import counted
from alignment.retrieval.cutoffs import ENDS
from alignment.retrieval.kinds import HARMONIC, HELD_OUT, SEEN, TOO_FAR, UNSEEN
from connector.cli.table_layout import field_lines, table_lines, text_of
from connector.progress import say
from connector.prose import USUAL_WIDTH, prose_lines, terminal_width, wrap
from connector.provenance.counts import in_words
from connector.reports.geometry_rows import geometry_tables
from connector.safe_text import for_terminal, json_for_terminal
from connector.states import ReleaseState

if TYPE_CHECKING:
    from alignment.comparison.guidelines import Guideline
    from alignment.geometry.geometry import Geometry
    from alignment.model.card import AlignmentCard
    from alignment.retrieval.ways import Way
    from connector.provenance.runs import RunResult
    from connector.releases.promotion import AliasSwitch
    from connector.releases.release import Release
    from connector.search.query import QueryResult
    from connector.search.retriever import SearchHit


def print_json(document: Any) -> None:
    """Print a document as JSON on stdout."""
    click.echo(json_text(document, indent=2))


def json_text(document: Any, *, indent: int | None = None) -> str:
    """Lay a document out as JSON that stdout can print whatever its encoding is, and that no terminal obeys."""
    has_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    return json_for_terminal(json.dumps(document, indent=indent, ensure_ascii=not has_unicode, default=str))


def show(sentence: str, *, first: str = "", rest: str = "") -> None:
    """Print a sentence for people on stdout, its first line and the others behind their indents.

    It is wrapped on a terminal, see `connector.prose`; what a terminal would obey is escaped.
    """
    for line in prose_lines(for_terminal(sentence), sys.stdout, first=first, rest=rest):
        click.echo(line)


def print_result(
    result: "RunResult[object]", made: Mapping[str, Any], as_json: bool, shown: Mapping[str, Any] | None = None
) -> None:
    """Print how a run ended and what it made; `shown` is how people read what it made."""
    if as_json:
        print_json({"run": result.run, "counts": dict(result.counts), **made})
    else:
        print_table([made if shown is None else shown], _run_title(result))


def _run_title(result: "RunResult[object]", note: str = "") -> str:
    return f"run {result.run}{note}: {in_words(result.counts) or 'nothing to do'}"


def print_releases(result: "RunResult[list[Release]]", as_json: bool) -> None:
    """Print the releases that a run wrote."""
    rows = [
        {
            "collection": release.row.collection,
            "metric": release.row.metric,
            "state": release.row.state,
            "points": release.row.points,
            "physical_name": release.name,
            "hnsw_ef": release.row.hnsw_ef,
            "hnsw_recall": release.row.hnsw_recall,
        }
        for release in result.value
    ]
    if as_json:
        print_json({"run": result.run, "counts": dict(result.counts), "releases": rows})
    else:
        shown = [{"release" if name == "physical_name" else name: v for name, v in row.items()} for row in rows]
        of = f" (points over all releases of {rows[0]['collection']})" if rows else ""
        print_table(with_blanks(shown), _run_title(result, of))


def with_blanks(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with blanks in the names of their columns, so that a narrow column can have a long name."""
    return [{name.replace("_", " "): value for name, value in row.items()} for row in rows]


def say_shadows(result: "RunResult[list[Release]]", command: str) -> None:
    """Say what to do next with releases that were not made live, because another one is: `command` audits them."""
    shadows = [release.row for release in result.value if release.row.state == ReleaseState.READY]
    if shadows:
        collection = shadows[0].collection
        names, metrics = ([getattr(row, name) for row in shadows] for name in ("physical_name", "metric"))
        say(
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} ready beside what is live of {collection} under "
            f"{', '.join(metrics)}: run `{command}`, then `modalign promote {collection}`"
        )


def switched_rows(result: "RunResult[list[AliasSwitch]]") -> list[dict[str, Any]]:
    """Lay out what a promotion or a rollback switched."""
    return [
        {
            "collection": each.row.collection,
            "metric": each.row.metric,
            "live": each.row.physical_name,
            "before": each.previous.physical_name if each.previous else None,
            "audit": each.promotion.audit_id,
            "forced_by": each.promotion.forced_by,
            "differences": each.differences,
            "worse": each.worse,
        }
        for each in result.value
    ]


def result_quality(found: "QueryResult", by: "Way") -> str:
    """Say in words how good a search result is, whose items were found this way."""
    answer = found.hits
    if answer.certified is None and found.guarantee == "exact":
        order = ": every item was compared"
        proof = (
            order if found.compares_with_all else " order; an index may miss items, --exact compares with every item"
        )
    elif answer.certified is None:
        proof = ""
    elif answer.certified:
        proof = ": nothing better is there"
    else:
        proof = ": not proved that nothing better is there" + ("" if answer.exact else ", --exact may prove it")
    what = f"{counted(answer.candidates, 'candidate')} rescored"
    if by != "image":
        what = f"{counted(answer.candidates, 'item')} scored"
    return f"{found.guarantee}{proof}" + (f", {what}" if answer.candidates else "")


def search_rows(hits: Sequence["SearchHit"]) -> Iterator[dict[str, Any]]:
    """Lay found items out as rows of a table: what people read comes last, and may be long.

    Where something ranks seen items lower, columns say what that is, and by what items are ranked: their score without
    it. A column says the groups where they are not the keys.
    """
    with_offset = any(item.seen_offset for item in hits)
    with_groups = any(item.group != item.key for item in hits)
    for rank, item in enumerate(hits, start=1):
        row: dict[str, Any] = {"#": rank}
        if with_offset:
            row["ranked by"] = round(item.score - item.seen_offset, 4)
        row["score"] = round(item.score, 4) + 0.0  # no -0
        if with_offset:
            row["seen offset"] = round(item.seen_offset, 4)
        if len(item.scores) > 1:
            row |= {f"by {way}": round(score, 4) for way, score in item.scores.items()}
        row["key"] = item.key
        if with_groups:
            row["group"] = item.group
        if item.modality == "image":
            row["image"] = _name(item.payload.get("image"))
        row["caption"] = (item.caption or item.payload).get("caption", "")
        yield row


def _name(path: Any) -> str:
    return Path(path).name if isinstance(path, str) else ""


def print_rejects(rows: Sequence[Mapping[str, Any]], run: int) -> None:
    """Print what a run refused, a table for each file."""
    if not rows:
        print_table([], f"rejects of run {run}")
    for source in dict.fromkeys(row["source"] for row in rows):
        columns = {"position": "row", "key": "key", "modality": "modality", "reason": "reason", "detail": "detail"}
        of_source = [{shown: row[name] for name, shown in columns.items()} for row in rows if row["source"] == source]
        of_source = [{**row, "row": row["row"] or ""} for row in of_source]  # 0 is of the file as a whole
        print_table(of_source, f"rejects of run {run} in {source}")


def print_guidelines(guidelines: Sequence["Guideline"]) -> None:
    """Print what a comparison says on stdout, a paragraph each with what it rests on."""
    for guideline in guidelines:
        show(f"{guideline.topic}: {guideline.says}", rest="  ")
        show(f"({guideline.rests_on})", first="  ", rest="  ")
        show("")


def print_geometry(found: "Geometry", title: str) -> None:
    """Print a geometry as tables, recalls first, and say in a sentence what it means."""
    _print_title(f"{title}\n")
    for table in geometry_tables(found):
        print_table(table.rows, table.title)
    show(found.meaning)
    if found.left_out:
        say(f"left out, because they could not be aligned: {counted(found.left_out, 'item')}")


def print_recalls(card: "AlignmentCard") -> None:
    """Print what an alignment finds of held-out items, and of unseen and seen ones in one collection."""
    estimates = card.recall_estimates
    judged = next((row["metric"] for row in estimates if row["about"] != HELD_OUT), None)
    for direction in dict.fromkeys(row["direction"] for row in estimates):
        of_direction = [row for row in estimates if (row["metric"], row["direction"]) == (judged, direction)]
        title = f"{direction} under {judged}: held-out items alone, then all in one collection"
        print_table(map(_recall_row, of_direction), title)
    if rest := [row for row in estimates if row["metric"] != judged]:
        rows = [{"metric": row["metric"], "direction": row["direction"], **_recall_row(row)} for row in rest]
        hidden = {"queries about", "among"}
        shown = [{name: value for name, value in row.items() if name not in hidden} for row in rows]
        print_table(shown, "held-out items alone, under other metrics")
    if any(row["about"] == SEEN for row in estimates):
        show(
            "Queries about seen items are paraphrases of a sample. An audit draws its own, and asks with other captions "
            "where there are enough, so its figures differ."
        )
        if too_far := _less_found(estimates):
            show(f"{', '.join(too_far)}: {TOO_FAR}.")
    if not estimates:  # of an older modalign
        rows = [
            {"metric": metric, "direction": direction, **values}
            for metric, directions in card.held_out_recall.items()
            for direction, values in directions.items()
        ]
        print_table(rows, "among held-out groups")
    print_table(
        _whole_rows(card.whole_recall),
        "what the offset changes: Recall@1/Recall@10 in one collection, and the share of first places that seen items "
        "take and would fairly take",
    )


def _less_found(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the directions in which seen items are found less often than unseen ones, by the longest list."""
    found: dict[str, dict[str, float]] = {}
    for row in estimates:
        longest = [recall["value"] for name, recall in row.items() if name.startswith("recall@")][-1]
        found.setdefault(row["direction"], {}).setdefault(row["about"], longest)
    return [direction for direction, by in found.items() if SEEN in by and by[SEEN] < by.get(UNSEEN, 0.0)]


def _recall_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Lay a recall of `AlignmentCard.recall_estimates` out, the one of the longest list with interval and chance."""
    about = "harmonic mean" if row["about"] == HARMONIC else f"{row['about']} items"
    recalls = {name.removeprefix("recall@"): value for name, value in row.items() if name.startswith("recall@")}
    longest = list(recalls)[-1]
    shown = {f"R@{k}": f"{recall['value']:.3f}" for k, recall in recalls.items()}
    best = recalls[longest]
    shown[f"R@{longest}"] += f" [{best['low']:.3f}, {best['high']:.3f}]"
    counts = {"queries about": about, "n": f"{row['queries']:,}", "among": f"{row['items']:,}"}
    return {**counts, **shown, "chance": f"{best['chance']:.3f}"}


def _whole_rows(whole: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row a direction, without the offset and with one if there is one: how either kind of item is found."""
    for direction, places in whole.items():
        for place in places if places[0] != places[-1] else places[:1]:
            recalls = {
                kind: "/".join(f"{place[kind][f'recall@{k}']:.3f}" for k in ENDS) for kind in (UNSEEN, SEEN, HARMONIC)
            }
            firsts = {"first": f"{place['first_places']:.3f}", "fair": f"{place['fair']:.3f}"}
            yield {"direction": direction, "offset": round(place["seen_offset"], 4), **recalls, **firsts}


def print_table(rows: Iterable[Mapping[str, Any]], title: str) -> None:
    """Print rows with common names as a table on stdout, under a title; see `connector.cli.table_layout`."""
    width = table_width()
    _print_title(title)
    head, body = table_lines(list(rows), width, _rule())
    for line in head:
        click.secho(line, bold=True)
    click.echo("".join(f"{line}\n" for line in (body or ["  none"])))


def print_fields(fields: Mapping[str, Any], title: str) -> None:
    """Print names with their values under a title, a pair a line, without empty values."""
    _print_title(title)
    texts = {name: text_of(value) for name, value in fields.items()}
    click.echo("".join(f"{line}\n" for line in field_lines(texts, table_width())))


def table_width() -> int:
    """Return how many cells a line of a table has: those of the terminal, or 80 in a pipe; COLUMNS says otherwise."""
    if "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return terminal_width(sys.stdout) or USUAL_WIDTH


def _print_title(title: str) -> None:
    for line in wrap(for_terminal(title).split(" "), table_width()):
        click.secho(line, bold=True)


def _rule() -> str:
    """Return the character of the line below the head of a table, in the encoding of stdout."""
    try:
        "─".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "-"
    return "─"
