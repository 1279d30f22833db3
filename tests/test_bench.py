"""Benchmarks ask both sides the same, say what, and judge only what the turns can tell."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import qdrant_edge as edge
from click.testing import CliRunner

import bench.__main__
from bench import search
from bench.__main__ import OTHERS, SLOW_TOPICS, TOPICS, main, rows_of
from bench.report import BEGIN, END, FIGURES, WIDTH, document, lines, write
from bench.row import LeftOut, Row, Sides, measure

ROWS = rows_of(TOPICS)


def row(
    ours: list[float],
    theirs: list[float],
    goal: float = 1.0,
    unit: Literal["time", "rate"] = "time",
    what: str = "work on {size} things",
    calls: list[str] | None = None,
) -> Row:
    """A row whose sides take what is given, turn after turn, and leave their names in `calls`."""

    @contextmanager
    def sides(size: int) -> Iterator[Sides]:
        def taken(name: str, values: Iterator[float]) -> float:
            if calls is not None:
                calls.append(f"{name} {size}")
            return next(values)

        one, other = iter(ours), iter(theirs)
        yield Sides(lambda: taken("ours", one), lambda: taken("theirs", other), "hnsw_ef 64")

    return Row(
        what=what,
        against="a loop by hand",
        asked="Both do the same work on the same things, in the same order and with the same settings.",
        unit=unit,
        goal=goal,
        size=1000,
        small=10,
        sides=sides,
    )


@contextmanager
def nothing_to_measure(size: int) -> Iterator[Sides]:
    if size:
        raise LeftOut("no server: none is named")
    yield Sides(lambda: 1, lambda: 1)


@pytest.mark.parametrize("small", [False, True])
def test_both_sides_take_turns_and_begin_in_turn(small: bool) -> None:
    calls: list[str] = []
    measure(row([1] * 5, [1] * 5, calls=calls), small=small)
    size = 10 if small else 1000
    pair = [f"ours {size}", f"theirs {size}"]
    assert calls == [*pair, *pair[::-1], *pair, *pair[::-1], *pair]


def test_a_side_that_returns_nothing_is_timed() -> None:
    @contextmanager
    def sides(_: int) -> Iterator[Sides]:
        yield Sides(lambda: sum(range(100_000)) and None, lambda: None)

    timed = Row(what="", against="", asked="", unit="time", goal=2, size=1, small=1, sides=sides)
    result = measure(timed)
    assert min(result.ratios) > 2
    assert result.verdict == "missed"


@pytest.mark.parametrize(
    ("unit", "ours", "ratio", "verdict"),
    [
        ("time", [0.5, 0.6, 0.7, 0.8, 0.9], 0.7, "met"),
        ("time", [1.5, 1.6, 1.7, 1.8, 1.1], 1.6, "missed"),
        ("time", [0.5, 0.6, 0.7, 0.8, 1.1], 0.7, "unclear"),
        ("time", [0.5, 0.6], 0.55, "unclear"),  # two turns tell nothing
        ("rate", [2.0, 2.0, 4.0, 2.0, 2.0], 0.5, "missed"),
        ("rate", [0.5, 0.5, 0.25, 0.5, 0.5], 2.0, "met"),
        ("rate", [0.5, 0.5, 2.0, 0.5, 0.5], 2.0, "unclear"),
    ],
)
def test_a_goal_is_met_or_missed_only_where_the_whole_interval_says_so(
    unit: Literal["time", "rate"], ours: list[float], ratio: float, verdict: str
) -> None:
    result = measure(row(ours, [1.0] * 5, unit=unit), turns=len(ours))
    assert result.ratio == pytest.approx(ratio)
    assert result.verdict == verdict


def test_one_slow_turn_of_many_does_not_move_the_verdict() -> None:
    assert measure(row([0.9] * 8 + [9.0], [1.0] * 9), turns=9).verdict == "met"


def test_a_row_that_needs_what_is_not_there_says_so_and_others_are_measured() -> None:
    left_out = Row(what="search", against="", asked="", unit="time", goal=1, size=1, small=1, sides=nothing_to_measure)
    results = [measure(left_out), measure(row([1] * 5, [1] * 5))]
    printed = "\n".join(lines(results))
    assert "not measured" in printed
    assert "no server: none is named" in printed
    assert [found["verdict"] for found in document(results)["rows"]] == ["not measured", "met"]


def test_a_table_is_at_most_80_columns_wide_and_says_what_both_sides_are_asked() -> None:
    results = [measure(row([1] * 5, [1] * 5, what=name)) for name in ("push", "search by ready vectors, one at a time")]
    printed = lines(results)
    assert max(map(len, printed)) <= WIDTH
    words = " ".join(" ".join(printed).split())
    assert words.count("hnsw_ef 64") == 2
    assert "a loop by hand" in words


def test_a_document_holds_every_turn() -> None:
    (found,) = json.loads(json.dumps(document([measure(row([2, 3, 4, 5, 6], [1] * 5))])))["rows"]
    assert (found["what"], found["ratio"], found["interval"]) == ("work on 1,000 things", 4, [2, 6])
    assert (found["ours"], found["theirs"]) == ([2, 3, 4, 5, 6], [1] * 5)


def test_a_page_keeps_the_rows_that_are_not_measured_again(tmp_path: Path) -> None:
    page, end = tmp_path / "performance.md", END.format(FIGURES)
    page.write_text(f"# Speed\n\n{BEGIN.format(FIGURES)}\n{end}\n\nWhere the time goes.\n", encoding="utf-8")
    push, search_, other = (
        row([slow] * 5, [1] * 5, what=name) for name, slow in (("push", 2), ("search", 3), ("f", 4))
    )
    write(page, [measure(push)], [push, search_, other])
    first = page.read_text(encoding="utf-8")
    assert [line for line in first.splitlines() if line.startswith("| push")] == [
        "| push | a loop by hand | 2 | 2–2 | ≤ 1 | missed: hnsw_ef 64 |"
    ]
    assert first.count("not measured") == 2
    write(page, [measure(row([3] * 5, [1] * 5, what="search"))], [search_, push])
    second = page.read_text(encoding="utf-8")
    assert [line.split(" | ")[:3] for line in second.splitlines() if "hand" in line] == [
        ["| search", "a loop by hand", "3"],
        ["| push", "a loop by hand", "2"],
    ]
    assert second.startswith("# Speed\n\n")
    assert second.endswith(f"{end}\n\nWhere the time goes.\n")


def test_a_ratio_of_few_turns_says_how_many(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"{BEGIN.format(FIGURES)}\n{END.format(FIGURES)}\n", encoding="utf-8")
    slow = row([3] * 3, [1] * 3)
    write(page, [measure(slow, turns=3)], [slow])
    assert "| 3 |  | ≤ 1 | unclear: hnsw_ef 64, 3 turns |" in page.read_text(encoding="utf-8")


def test_a_row_with_another_goal_or_another_side_is_measured_anew(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"{BEGIN.format(FIGURES)}\n{END.format(FIGURES)}\n", encoding="utf-8")
    measured = row([2] * 5, [1] * 5)
    for changed in (replace(measured, goal=3.0), replace(measured, against="the engine")):
        write(page, [measure(measured)], [measured])
        write(page, [], [changed])
        assert "not measured" in page.read_text(encoding="utf-8")
        write(page, [], [measured])


def test_a_page_without_a_place_for_the_table_is_refused_and_kept(tmp_path: Path) -> None:
    page = tmp_path / "other.md"
    page.write_text("# Another page\n", encoding="utf-8")
    with pytest.raises(ValueError, match=page.name):
        write(page, [], [])
    assert page.read_text(encoding="utf-8") == "# Another page\n"


def test_the_command_measures_the_topics_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.__main__, "rows_of", lambda topics: [row([1] * 5, [2] * 5, what=name) for name in topics])
    ended = CliRunner().invoke(main, ["push", "search", "--json"])
    assert ended.exit_code == 0, ended.output
    assert [found["what"] for found in json.loads(ended.stdout)["rows"]] == ["push", "search"]
    assert "push: 0.5, met" in ended.stderr


def test_an_error_in_a_row_keeps_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"{BEGIN.format(FIGURES)}\n{END.format(FIGURES)}\n", encoding="utf-8")
    rows = [row([1] * 5, [2] * 5, what="sound"), row([], [], what="broken")]  # no turn is left to the second
    monkeypatch.setattr(bench.__main__, "rows_of", lambda topics: rows)
    ended = CliRunner().invoke(main, ["push", "--write", str(page)])
    assert isinstance(ended.exception, StopIteration)
    text = page.read_text(encoding="utf-8")
    assert "| sound | a loop by hand | 0.5 |" in text
    assert "| broken | a loop by hand |  |  | ≤ 1 | not measured |" in text


def test_a_profile_names_the_functions_of_our_side_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def sides(_: int) -> Iterator[Sides]:
        yield Sides(lambda: sum(sorted(range(1000))) and None, lambda: max(range(1000)) and None)

    profiled = replace(row([], []), sides=sides)
    monkeypatch.setattr(bench.__main__, "rows_of", lambda topics: [profiled])
    ended = CliRunner().invoke(main, ["push", "--profile"])
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.startswith("work on 1,000 things\n")
    assert "builtins.sorted" in ended.stdout
    assert "builtins.max" not in ended.stdout


@pytest.mark.parametrize("name", OTHERS)
def test_a_benchmark_says_what_both_sides_are_asked(name: str) -> None:
    assert importlib.import_module(f"bench.{name}").ASKED.endswith(".")


def test_rows_are_told_apart_by_their_titles() -> None:
    rows = [*ROWS, *rows_of(SLOW_TOPICS)]
    assert len({row.title for row in rows}) == len(rows)
    assert not [row.title for row in rows if not row.asked.endswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_every_row_runs_in_its_small_form(row: Row) -> None:
    """Whatever the ratio is: machines that run tests are noisy."""
    result = measure(row, small=True, turns=1)
    if not result.ours:
        pytest.skip(result.note)
    assert result.ratio > 0


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, search.BATCH], ids=["single", "batches"])
@pytest.mark.parametrize("threshold", [100, 10_000], ids=["graph", "no graph"])
def test_search_asks_both_sides_the_same(threshold: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same effort along the graph, limit, payloads and quantization, in single searches and in batches."""
    monkeypatch.setattr(search, "LAYOUT", {"indexing_threshold": threshold, "m": 4})
    requested: list[tuple[Any, ...]] = []
    original = edge.QueryRequest

    def recorded(**options: Any) -> edge.QueryRequest:
        params = options["params"]
        effort = params and (params.exact, params.hnsw_ef, repr(params.quantization))
        requested.append((options["limit"], options["filter"], effort, options["with_payload"]))
        return original(**options)

    monkeypatch.setattr(edge, "QueryRequest", recorded)
    with search.beside_the_engine(400, batch=batch) as sides:
        requested.clear()  # the push has tuned the index, and asked otherwise
        sides.ours()
        ours = len(requested)
        sides.theirs()
    assert len(requested) == 2 * ours
    assert len(set(requested)) == 1
