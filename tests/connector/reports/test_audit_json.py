"""What an audit leaves behind: strict JSON, tables that hide nothing, whole lines, and what Prometheus can read."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from alignment.modality import DIRECTIONS
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.measures import Change
from connector.audits.baseline import Drift
from connector.audits.history import AuditSummary
from connector.audits.measure import Measurement
from connector.audits.requirements import Requirement
from connector.audits.result import Audit
from connector.cli.audit_tables import print_audit, print_history
from connector.errors import OutputError
from connector.provenance.runs import RunResult
from connector.provenance.tables import MeasureRow
from connector.reports.audit_json import document, history_document, log_line
from connector.reports.output_files import append_line, claim_file
from connector.reports.prometheus import write_prometheus
from tests.support.audits import altered
from tests.support.errors import raises
from tests.support.world import World, audit, opened_world, pairs

N = 40
ODD = 'lang="de\\x\nfr"'
NOT_IN_GALLERY = '{"must": [{"key": "split", "match": {"value": "nowhere"}}]}'
REQUIREMENT = Requirement.parse("text-to-image:recall@5>=2")


def drift(before: float, after: float) -> Drift:
    became = Change(before, after, Estimate(after - before, -math.inf, math.inf), 1.0, 9, 1, 2)
    return Drift("text-to-image", "", "median_rank", 3, became)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audit]:
    """An audit with strata, a filter that matches nothing, a drift, a failure, and numbers that are none."""
    with opened_world("edge", tmp_path_factory.mktemp("world")) as world:
        yield made(world)


def made(world: World) -> Audit:
    world.alignment()
    parts = pairs(N)
    for part in parts:
        part.payloads[:] = [json.dumps({"kind": ODD if n % 2 else "plain"}) for n in range(N)]
    (release,) = world.push(world.set("s", *parts)).releases
    embedding_set = world.set("s", *parts)
    found = audit(
        release,
        world.store,
        embedding_set,
        ks=(1, 5),
        queries="all",
        gallery="all",
        slices=["kind"],
        filters={"none": NOT_IN_GALLERY},
        requirements=[REQUIREMENT],
    )
    strange = [
        Measurement("text-to-image", "hubness", math.nan),
        Measurement("both", "gap", math.inf, -math.inf, 1.0),
    ]
    found = altered(found, measures=[*found.measures, *strange])
    return replace(found, number=7, verified=2 * N, drifts=[drift(2.0, math.inf)])


def strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def result(found: Audit) -> RunResult[Audit]:
    return RunResult(5, {}, found)


def broken(found: Audit) -> Audit:
    return Audit(found.row, found.plan, found.pairs, broken="3 points are gone", number=8)


class TestTheDocument:
    def test_it_is_strict_json(self, found: Audit) -> None:
        assert found.space.geometry is not None
        written = document(result(found))
        assert strict(json.dumps(written, allow_nan=False, default=str)) is not None
        values = {(m["direction"], m["part"], m["name"]): m for m in written["measures"]}
        assert values["both", "", "gap"]["value"] is None
        assert (values["both", "", "gap"]["low"], values["both", "", "gap"]["high"]) == (None, 1.0)
        assert [d["after"] for d in written["drifts"]] == [None]
        assert len(written["measures"]) == len(found.measures)

    def test_what_it_says(self, found: Audit) -> None:
        written = document(result(found))
        said = {
            "run": 5,
            "audit": 7,
            "verdict": "failed",
            "pairs": "s",
            "queries": "all",
            "gallery": "all",
            "sample": None,
        }
        assert {name: written[name] for name in said} == said
        (failed,) = written["not_met"]
        value = found.measure("text-to-image", "recall@5").value
        assert (failed["requirement"], failed["direction"], failed["value"]) == (
            REQUIREMENT.text,
            "text-to-image",
            value,
        )
        stages = {(s["direction"], s["stage"]): s for s in written["stages"] if not s["kind"]}
        about_seen = {s["stage"] for s in written["stages"] if s["kind"] == "seen"}
        assert about_seen == {stage for _, stage in stages}
        assert {stage for _, stage in stages} == {"reference", "lowering", "index", "filter:none"}
        assert stages["text-to-image", "filter:none"]["why_not"] == "the filter matches no image"
        index = stages["image-to-text", "index"]
        assert index["recall"]["5"]["value"] == found.measure("image-to-text", "recall@5", "index").value
        assert index["latency_ms"]["p50"] <= index["latency_ms"]["p95"] <= index["latency_ms"]["p99"]
        assert [each["k"] for each in written["curve"]["text-to-image"]] == [1, 2, 3, 5, 10, 20, 30]

    def test_a_broken_release_has_no_measures(self, found: Audit) -> None:
        written = document(result(broken(found)))
        assert (written["verdict"], written["broken"], written["measures"]) == ("broken", "3 points are gone", [])
        assert "stages" not in written
        strict(json.dumps(written, allow_nan=False))


class TestTheTables:
    def test_the_verdict_and_every_stage(self, found: Audit, capsys: pytest.CaptureFixture[str]) -> None:
        print_audit(found)
        shown = capsys.readouterr().out
        assert f"{found.row.physical_name}: failed; all gallery of {N} images, {N} texts" in shown
        for direction in DIRECTIONS:
            table = shown.partition(f"stages of a search, {direction}")[2].partition("\n\n")[0]
            rows = {line.split()[0]: line.split() for line in table.splitlines() if line.strip()}
            for stage in ("reference", "lowering", "index"):
                recall = found.measure(direction, "recall@1", stage).value
                assert rows[stage][1] == f"{recall:.3f}"
            assert rows["filter:none"] == ["filter:none"]
        assert "text-to-image: filter:none was not measured: the filter matches no image." in shown
        assert "since audit 3" in shown
        assert f"Not met: {REQUIREMENT.text}: text-to-image recall@5 is " in shown
        assert f"{2 * N} points, 0 vectors in a graph" in shown
        for value in ("kind=plain", "kind=lang"):
            assert value in shown

    def test_changes_of_no_more_than_chance_are_counted(self, found: Audit, capsys: pytest.CaptureFixture[str]) -> None:
        certain = Change(0.5, 0.4, Estimate(-0.1, -0.2, -0.05), 0.01, 9, 1, 2)
        drifts = [*found.drifts, Drift("text-to-image", "unseen", "recall@1", 3, certain), drift(2.0, 3.0)]
        print_audit(replace(found, drifts=drifts))
        table = capsys.readouterr().out.partition("since audit 3")[2]
        assert "unseen recall@1" in table
        assert "2 further comparisons" in table
        assert "median_rank" not in table.partition("further")[0]

    def test_a_broken_release(self, found: Audit, capsys: pytest.CaptureFixture[str]) -> None:
        print_audit(broken(found))
        assert capsys.readouterr().out == f"{found.row.physical_name}: broken\n  3 points are gone\n"


def samples(path: Path) -> dict[str, list[Any]]:
    """What Prometheus reads, by name."""
    families = text_string_to_metric_families(path.read_text(encoding="utf-8"))
    read: dict[str, list[Any]] = {}
    for family in families:
        for sample in family.samples:
            read.setdefault(sample.name, []).append(sample)
    return read


class TestPrometheus:
    def test_it_reads_every_measure(self, found: Audit, tmp_path: Path) -> None:
        write_prometheus(tmp_path / "audit.prom", [found])
        read = samples(tmp_path / "audit.prom")
        release = {"collection": "things", "metric": "cosine", "release": found.row.physical_name}
        values = {}
        for name in ("", "_low", "_high"):
            for sample in read[f"modalign_audit_measure{name}"]:
                assert {key: sample.labels[key] for key in release} == release
                place = sample.labels["direction"], sample.labels["part"], sample.labels["measure"]
                values[name, *place] = sample.value
        expected = {}
        for m in found.measures:
            for name, value in (("", m.value), ("_low", m.low), ("_high", m.high)):
                if value is not None and (name == "" or (m.low is not None and m.high is not None)):
                    expected[name, m.direction, m.part, m.name] = value
        np.testing.assert_equal(values, expected)  # NaN is NaN
        verdicts = {s.labels["verdict"]: s.value for s in read["modalign_audit_verdict"]}
        assert verdicts == {"passed": 0, "failed": 1, "measured": 0, "broken": 0}
        (ended,) = read["modalign_audit_timestamp_seconds"]
        assert abs(ended.value - datetime.now(UTC).timestamp()) < 60

    def test_labels_are_escaped(self, found: Audit, tmp_path: Path) -> None:
        write_prometheus(tmp_path / "audit.prom", [found])
        parts = {s.labels["part"] for s in samples(tmp_path / "audit.prom")["modalign_audit_measure"]}
        assert f"kind={ODD}" in parts
        assert 'part="kind=lang=\\"de\\\\x\\nfr\\""' in (tmp_path / "audit.prom").read_text()

    def test_a_broken_release_still_has_a_verdict(self, found: Audit, tmp_path: Path) -> None:
        write_prometheus(tmp_path / "audit.prom", [broken(found)])
        read = samples(tmp_path / "audit.prom")
        assert {s.labels["verdict"] for s in read["modalign_audit_verdict"] if s.value == 1} == {"broken"}
        assert "modalign_audit_measure" not in read

    def test_an_older_file_stays_until_a_whole_one_replaces_it(
        self, found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "audit.prom"
        write_prometheus(path, [broken(found)])
        old, inode = path.read_bytes(), path.stat().st_ino

        def full(self: Path, target: Path) -> Any:
            assert path.read_bytes() == old
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", full)
            with raises(OutputError, path, "No space left"):
                write_prometheus(path, [found])
        assert path.read_bytes() == old
        write_prometheus(path, [found])
        assert path.stat().st_ino != inode
        assert [each.name for each in tmp_path.iterdir()] == ["audit.prom"]  # the collector reads every *.prom


def append_many(path: Path, found: Audit, times: int, together: Barrier) -> None:
    together.wait(60)  # else the first would be done before the last has started
    for _ in range(times):
        append_line(path, log_line(result(found)))


class TestJsonLines:
    def test_a_line_is_the_document_without_examples(self, found: Audit, tmp_path: Path) -> None:
        append_line(tmp_path / "audits.jsonl", log_line(result(found)))
        append_line(tmp_path / "audits.jsonl", log_line(result(broken(found))))
        first, second = map(strict, (tmp_path / "audits.jsonl").read_text(encoding="utf-8").splitlines())
        whole = strict(json.dumps(document(result(found)), default=str))
        at = datetime.fromisoformat(first.pop("at"))
        assert abs((datetime.now(UTC) - at).total_seconds()) < 60
        left_out = ("worst", "curve", "seen_unseen", "geometry")
        assert first == {name: value for name, value in whole.items() if name not in left_out}
        assert second["verdict"] == "broken"

    @pytest.mark.slow
    def test_lines_of_several_processes_stay_whole(
        self, found: Audit, tmp_path: Path, processes: ForkServerContext
    ) -> None:
        path, writers, times = tmp_path / "audits.jsonl", 6, 20
        small = replace(found, release=None, info=None)
        together = processes.Barrier(writers)
        started = [
            processes.Process(target=append_many, args=(path, replace(small, number=number), times, together))
            for number in range(writers)
        ]
        for each in started:
            each.start()
        for each in started:
            each.join(60)
        assert [each.exitcode for each in started] == [0] * writers
        lines = path.read_bytes().split(b"\n")
        assert lines.pop() == b""
        assert max(map(len, lines)) > 2**13  # more than a page of memory, which would tear if it were written in pieces
        numbers = [strict(line.decode())["audit"] for line in lines]
        assert sorted(numbers) == sorted([*range(writers)] * times)


class TestFilesThatCannotBeWritten:
    def test_when_they_are_written(self, found: Audit, tmp_path: Path) -> None:
        path = tmp_path / "no" / "such"
        with raises(OutputError, path, "No such file"):
            append_line(path, log_line(result(found)))
        with raises(OutputError, path, "No such file"):
            write_prometheus(path, [found])

    def test_before_the_audit(self, tmp_path: Path) -> None:
        (tmp_path / "old").write_text("old\n")
        for good in (tmp_path / "old", tmp_path / "new"):
            claim_file(good)
        assert (tmp_path / "old").read_text() == "old\n"
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
        for bad in (tmp_path, tmp_path / "no" / "such", tmp_path / "old" / "below"):
            with raises(OutputError, bad):
                claim_file(bad)


class TestUnderAProtocol:
    def test_what_the_protocol_decides_is_not_claimed(self, found: Audit) -> None:
        asked = replace(found, plan=replace(found.plan, protocol="flickr30k"))
        written = document(RunResult(1, Counter(), asked))
        assert (written["protocol"], written["queries"], written["gallery"]) == ("flickr30k", None, None)


class TestTheHistory:
    @pytest.fixture
    def moments(self) -> list[AuditSummary]:
        def moment(number: int, verdict: str, asked: str, *values: tuple[str, str, float]) -> AuditSummary:
            measures = [
                MeasureRow(direction=d, stage=p, name=n, value=v, low=-math.inf, high=None, queries=9)
                for d, (p, n), v in ((d, ("", n), v) for d, n, v in values)
            ]
            at = datetime(2024, 5, number, 6, 30, tzinfo=UTC)
            return AuditSummary(number, "things.cosine.a", "cosine", verdict, at, asked, measures)

        return [
            moment(1, "passed", "s (gallery all)", ("text-to-image", "recall@10", 0.5), ("both", "gap", 0.25)),
            moment(2, "measured", "t (gallery all)", ("text-to-image", "recall@10", math.nan)),
            moment(3, "broken", "s (gallery all)"),
        ]

    def test_a_table_for_each_way_to_ask(self, moments: list[AuditSummary], capsys: pytest.CaptureFixture[str]) -> None:
        print_history(moments)
        first, _, second = capsys.readouterr().out.partition("audits under cosine of t (gallery all)")
        assert "audits under cosine of s (gallery all)" in first
        rows = [line.split() for line in first.splitlines() if "things.cosine.a" in line]
        assert rows == [
            ["1", "2024-05-01", "06:30", "things.cosine.a", "passed", "0.500", "0.250"],
            ["3", "2024-05-03", "06:30", "things.cosine.a", "broken"],
        ]
        for column in ("recall@10", "text-to-image", "gap"):
            assert column in first
        assert "2024-05-02" in second

    def test_json_is_strict(self, moments: list[AuditSummary]) -> None:
        written = strict(json.dumps(history_document(moments), allow_nan=False))
        assert [(each["audit"], each["verdict"]) for each in written] == [(1, "passed"), (2, "measured"), (3, "broken")]
        assert written[0]["at"] == "2024-05-01T06:30:00+00:00"
        assert written[0]["measures"][0] == {
            "direction": "text-to-image",
            "part": "",
            "name": "recall@10",
            "value": 0.5,
            "low": None,
            "high": None,
            "queries": 9,
        }
        assert written[1]["measures"][0]["value"] is None
        assert written[2]["measures"] == []

    def test_of_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_history([])
        assert (capsys.readouterr().out, history_document([])) == ("", [])
