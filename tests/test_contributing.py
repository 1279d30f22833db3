"""The worked examples of CONTRIBUTING.md: a metric and a measure that are added as it says work as any other."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import correlation

from alignment.metrics import METRICS, Metric, parse
from alignment.modality import DIRECTIONS
from alignment.model.onnx_export import export
from connector.audits.baseline import Baseline, find_baseline
from connector.audits.history import history
from connector.audits.measure import Measure
from connector.audits.measures import MEASURES
from connector.audits.plan import AuditPlan
from connector.audits.recording import record
from connector.audits.requirements import Requirement
from connector.audits.result import Audit
from connector.cli.audit_tables import print_audit, print_history
from connector.home import Home
from connector.provenance.runs import RunResult
from connector.reports.audit_context import AuditContext
from connector.reports.audit_json import document
from connector.reports.audit_page import write_audit_page
from connector.reports.history_page import write_history_page
from connector.reports.prometheus import write_prometheus
from connector.search.retriever import Retriever
from connector.settings import Settings
from tests.support.fakes import fake_pairs
from tests.support.world import (
    COLLECTION,
    alignment,
    audit,
    cards,
    embedded,
    latent,
    opened,
    opened_world,
    pairs,
    the_set,
)

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def code_of(marker: str) -> str:
    """The one example that holds `marker`."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if marker in block)
    return str(code)


def executed(marker: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example that holds `marker`, as a module."""
    module = ModuleType("worked_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code_of(marker), "CONTRIBUTING.md", "exec"), module.__dict__)
    return module


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Metric:
    metric: Metric = executed("class Correlation", monkeypatch).Correlation()
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric


def test_it_can_be_added_where_the_steps_say(tmp_path: Path) -> None:
    package = Path(__file__).parent.parent / "alignment"
    shutil.copytree(package, tmp_path / "alignment", ignore=shutil.ignore_patterns("__pycache__"))
    metrics = tmp_path / "alignment" / "metrics"
    (metrics / "correlation.py").write_text(code_of("class Correlation"), encoding="utf-8")
    registry = (metrics / "registry.py").read_text(encoding="utf-8")
    added = registry.replace("Perceptron(),\n", "Perceptron(), Correlation(),\n").replace(
        "from alignment.metrics.divergences",
        "from alignment.metrics.correlation import Correlation\nfrom alignment.metrics.divergences",
        1,
    )
    assert added.count("Correlation") == 2
    (metrics / "registry.py").write_text(added, encoding="utf-8")
    program = "from alignment.metrics import parse; print(parse('correlation'))"
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("correlation\n", "")


def test_it_is_what_it_says(example: Metric, rng: np.random.Generator) -> None:
    queries, items = rng.standard_normal((4, 9)), rng.standard_normal((6, 9))
    expected = [[1.0 - correlation(q, x) for x in items] for q in queries]
    np.testing.assert_allclose(example.score(queries, items), expected, rtol=1e-12)
    scores = example.score(torch.from_numpy(queries), torch.from_numpy(items))
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert parse("correlation") == example


@pytest.mark.slow
def test_it_is_exported(example: Metric) -> None:
    assert all(graph.difference < 1e-5 for graph in export(alignment(), example))


def test_it_is_served(example: Metric, tmp_path: Path) -> None:
    with opened_world("edge", tmp_path) as world:
        world.alignment()
        images, texts = pairs(30, noise=0.3)
        world.push(world.set("s", images, texts), metrics=["correlation"])
        retriever = Retriever.open(world.provenance, world.store, COLLECTION)
        X = embedded("text", latent(5, seed=9), noise=0.2)
        found = retriever.search_embeddings("text", X, 4, encoder=cards()["text"].fingerprint, exact=True)
        expected = example.score(alignment().project("text", X), alignment().project("image", images.vectors))
        for answer, row in zip(found, expected, strict=True):
            best = np.argsort(-row)[:4]
            assert [item.key for item in answer] == [str(number) for number in best]
            np.testing.assert_allclose([item.score for item in answer], row[best], atol=1e-6)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    measure: Measure = executed("PRECISION = Measure", monkeypatch).PRECISION
    monkeypatch.setitem(MEASURES, measure.name, measure)
    return measure


@pytest.mark.usefixtures("measure")
def test_a_measure_of_one_entry_is_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened_world("edge", tmp_path) as world:
        world.alignment()
        world.push(world.set("s", *pairs(30)))
        release, embedding_set = opened(world), the_set(world)
        plan: dict[str, Any] = {"ks": (1, 5), "queries": "all", "gallery": "all"}

        def recorded(requirement: str, baseline: Baseline | None = None) -> Audit:
            parsed = [Requirement.parse(requirement)]
            found = audit(release, world.store, embedding_set, requirements=parsed, baseline=baseline, **plan)
            with world.provenance.runs.start("audit", {}) as run:
                set_id = world.provenance.artifacts.record_set(embedding_set)
                return replace(found, number=record(found, world.provenance, run, set_id))

        first = recorded("precision@1>=1.01")
        baseline = find_baseline(world.provenance, release.row, "last", AuditPlan(**plan), "s")
        second = recorded("precision@5 drop<=0.1", baseline)
        summaries = history(world.provenance, [release.row], limit=9)
        written = RunResult(1, {}, second)
        write_prometheus(tmp_path / "audit.prom", [second])
        print_audit(second)
        print_history(summaries)
        alignment_row = world.provenance.artifacts.alignment(release.row.alignment_id)
        context = AuditContext(
            store=world.url,
            alignment=alignment_row,
            encoders=world.provenance.artifacts.encoders(alignment_row),
            pairs=embedding_set,
            requirements=["precision@5 drop<=0.1"],
            run=1,
            at=summaries[-1].at,
            moments=summaries,
        )
        write_audit_page(tmp_path / "audit.html", second, context)
        write_history_page(tmp_path / "history.html", COLLECTION, summaries)

    # Without noise every query finds its one relevant item first: one of the first k is right.
    for direction in DIRECTIONS:
        values = [second.measure(direction, f"precision@{k}").value for k in (1, 5)]
        assert values == pytest.approx([1.0, 0.2], rel=1e-12)
    assert [failure.requirement.name for failure in first.failures] == ["precision@1"] * 2
    assert second.verdict == "passed"
    assert {drift.change.difference.value for drift in second.drifts if drift.name == "precision@5"} == {0.0}
    names = {m["name"] for m in document(written)["measures"]}
    assert {"precision@1", "precision@5"} <= names
    assert 'measure="precision@5"' in (tmp_path / "audit.prom").read_text(encoding="utf-8")
    assert {m.name for m in summaries[-1].measures} >= {"precision@1", "precision@5"}
    tables, _, history_table = capsys.readouterr().out.partition("audits under")
    assert re.search(r"precision@5 +.*0\.200", tables)
    assert "precision@5" in history_table
    page, history_page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("audit.html", "history.html"))
    assert "of the first K answers, those that are right" in page
    assert page.count("Precision@5") >= 2, "in the table of changes, and as a picture of the history"
    assert "Precision@5" in history_page


@pytest.mark.slow
def test_the_encoder_is_tried_as_printed(tmp_path: Path) -> None:
    """The example, in a file of its own, by the command that stands above it."""
    (tmp_path / "my_encoders.py").write_text(code_of("class MeanColour"), encoding="utf-8")
    fake_pairs(tmp_path, 5)
    (tmp_path / "images").rename(tmp_path / "pictures")
    (command,) = re.findall(r"```\n(PYTHONPATH=\. modalign encode .*)\n```", TEXT)
    path, _, *arguments = shlex.split(command)
    environment = {**os.environ, "MODALIGN_HOME": "home", "PYTHONPATH": f"{path.partition('=')[2]}:{ROOT}"}
    program = [sys.executable, "-m", "connector.cli.main", *arguments, "--json"]
    ended = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["counts"]["encoded"] == 5
    with Home(Settings.load(home=tmp_path / "home")) as home:
        card = home.embedding_set("mine").card.encoders["image"]
    assert (card.spec, card.dim) == ("my_encoders:MeanColour", 3)


def test_every_example_has_a_test() -> None:
    """A new example needs one of its own, here or beside the module that it belongs to."""
    code = "".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    names = re.findall(r"^(?:class )?(\w+)(?:\(\w+\):| = Measure)", code, re.MULTILINE)
    assert set(names) == {"MeanColour", "Correlation", "CentredLowering", "PRECISION", "MemoryStore"}
