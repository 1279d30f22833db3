"""The worked example of CONTRIBUTING.md: a metric that is added as it says is served as any other."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.spatial.distance import correlation

from alignment.metrics import METRICS, Metric, parse
from alignment.model.onnx_export import export
from connector.search.retriever import Retriever
from tests.support.world import COLLECTION, alignment, cards, embedded, latent, opened_world, pairs

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Metric:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "class Correlation" in block)
    module = ModuleType("worked_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    metric: Metric = module.Correlation()
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric


def test_it_can_be_added_where_the_steps_say(tmp_path: Path) -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "class Correlation" in block)
    package = Path(__file__).parent.parent / "alignment"
    shutil.copytree(package, tmp_path / "alignment", ignore=shutil.ignore_patterns("__pycache__"))
    metrics = tmp_path / "alignment" / "metrics"
    (metrics / "correlation.py").write_text(code, encoding="utf-8")
    init = (metrics / "__init__.py").read_text(encoding="utf-8")
    added = init.replace("Perceptron(),\n", "Perceptron(), Correlation(),\n").replace(
        "from alignment.metrics.divergences",
        "from alignment.metrics.correlation import Correlation\nfrom alignment.metrics.divergences",
        1,
    )
    assert added.count("Correlation") == 2
    (metrics / "__init__.py").write_text(added, encoding="utf-8")
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


def test_it_is_exported(example: Metric) -> None:
    assert all(graph.difference < 1e-5 for graph in export(alignment(), example))


def test_it_is_served(example: Metric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened_world("edge", tmp_path, monkeypatch) as world:
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
