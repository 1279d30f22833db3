"""Fit, compare and audit say the same of the same data: one advice, from the same figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.comparison.compare import compare
from alignment.comparison.guidelines import advise
from alignment.comparison.paired_bootstrap import MARGIN
from alignment.comparison.table import best_validated
from alignment.fitting import heads
from alignment.fitting.fit import fit
from alignment.metrics import Cosine, LearnedMetric, Nnn, parse
from alignment.modality import DIRECTIONS
from alignment.model.alignment import Alignment
from alignment.retrieval.kinds import SEEN, UNSEEN
from alignment.sets.embedding_set import EmbeddingSet
from connector.audits.captions import CAPTIONED
from connector.audits.result import Audit
from connector.demo.emoji import SERVED, Demo
from connector.requests import AuditRequest, CompareRequest, FitRequest, default_of
from tests.support.audits import audited
from tests.support.world import COLLECTION, World, embedded, latent, opened_world, rows

N = 200
Figures = dict[tuple[str, str, str], tuple[float, float, float]]


@pytest.fixture(autouse=True, scope="module")
def small_samples() -> None:
    """As many queries are asked as in the audits of users."""


@pytest.fixture(autouse=True, scope="module")
def few_of_a_kind() -> None:
    """So are queries of each kind."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A home with a set whose pairs are linear with noise, and the alignment `auto` as a fit makes it, live."""
    with opened_world("edge", tmp_path_factory.mktemp("w")) as world:
        points = latent(N)
        bent = np.tanh(points) + 0.3 * points[:, ::-1] ** 2  # so that methods differ
        made = world.set(
            "s", rows("image", embedded("image", points, noise=0.4)), rows("text", embedded("text", bent, noise=0.4))
        )
        auto(made).save(world.home / "alignments" / "auto")
        world.push(made, "auto")
        yield world


def auto(embedding_set: EmbeddingSet) -> Alignment:
    with pytest.MonkeyPatch.context() as patched:
        without_heads(patched)
        return fit([embedding_set], device="cpu")


def without_heads(patched: pytest.MonkeyPatch) -> None:
    """Heads train for seconds; `auto` enters none of them."""
    for head in heads.HEADS.values():
        patched.setattr(head, "fewest_groups", 10 * N)


@pytest.fixture(scope="module")
def embedding_set(world: World) -> EmbeddingSet:
    return EmbeddingSet.open(world.home / "sets" / "s")


@pytest.fixture(scope="module")
def fitted(world: World) -> Alignment:
    return Alignment.load(world.home / "alignments" / "auto")


@pytest.fixture(scope="module")
def audit(world: World) -> Audit:
    (found,) = audited(world, AuditRequest(collection=COLLECTION, pairs="s"))
    return found


@pytest.mark.slow
def test_a_fit_says_what_an_audit_measures(fitted: Alignment, audit: Audit) -> None:
    """Among held-out items and of unseen ones in the whole collection: the same queries, counts and recalls."""
    for about, part in (("held-out", ""), ("unseen", UNSEEN)):
        for direction in DIRECTIONS:
            (row,) = [r for r in fitted.card.recall_estimates if (r["about"], r["direction"]) == (about, direction)]
            for k in (1, 5, 10):
                measured = audit.measure(direction, f"recall@{k}", part)
                assert row["queries"] == measured.queries
                assert row[f"recall@{k}"]["value"] == pytest.approx(measured.value, abs=1e-6)
                assert row[f"recall@{k}"]["low"] <= measured.value <= row[f"recall@{k}"]["high"]
            if not part:
                chance = audit.measure(direction, "chance.recall@10").value
                assert row["recall@10"]["chance"] == pytest.approx(chance, abs=1e-6)


def test_the_demo_shows_what_the_fit_says_and_an_audit_measures(world: World, fitted: Alignment, audit: Audit) -> None:
    demo = Demo(world.home, {"cosine": audit}, world.home / "demo.html", 1.0, world.home / "a.png")
    rows_of = {(row["about"], row["direction"]): row for row in fitted.card.recall_estimates}
    for row in demo.rows():
        held_out, unseen = rows_of["held-out", row["direction"]], rows_of[UNSEEN, row["direction"]]
        assert row["queries"] == held_out["queries"]
        assert row["chance@10"] == pytest.approx(held_out["recall@10"]["chance"], abs=1e-4)
        for k in (1, 5, 10):
            assert row[f"recall@{k}"] == pytest.approx(held_out[f"recall@{k}"]["value"], abs=1e-4)
        assert row[f"{UNSEEN} recall@10"] == pytest.approx(unseen["recall@10"]["value"], abs=1e-4)
    assert [row["direction"] for row in demo.rows()] == list(DIRECTIONS)


def test_the_demo_chooses_a_method_as_a_fit_and_a_comparison_do() -> None:
    """Under the first metric that learns nothing, which is theirs, with the same hold-out and folds."""
    plain = [metric for metric in map(parse, SERVED) if not isinstance(metric, LearnedMetric | Nnn)]
    assert plain[0] == Cosine() == parse(default_of(FitRequest, "metrics")[0])
    for name in ("holdout", "folds", "seed", "seen_offset", "budget"):
        assert default_of(FitRequest, name) == default_of(CompareRequest, name)


def test_intervals_and_counts_stand_beside_every_recall(fitted: Alignment) -> None:
    rows_of = fitted.card.recall_estimates
    kinds = ["held-out", UNSEEN, SEEN, "harmonic"]
    assert sorted((row["direction"], row["about"]) for row in rows_of) == sorted(
        (d, k) for d in DIRECTIONS for k in kinds
    )
    for row in rows_of:
        assert row["queries"] > 0
        assert row["items"] == (N if row["about"] != "held-out" else row["queries"])
        assert row["recall@10"]["low"] < row["recall@10"]["high"]
        assert row["recall@10"]["chance"] == pytest.approx(10 / row["items"], abs=1e-6)
    before = fitted.card.whole_recall
    for row in rows_of:
        if row["about"] != "held-out":
            assert row["recall@10"]["value"] == before[row["direction"]][1][row["about"]]["recall@10"]


def test_compare_advises_what_a_fit_takes(embedding_set: EmbeddingSet, fitted: Alignment) -> None:
    """Or a cheaper method that loses next to nothing; and it finds of new items what the fit says."""
    with pytest.MonkeyPatch.context() as patched:
        without_heads(patched)
        comparison = compare([embedding_set], metrics=[Cosine()], device="cpu")
    taken, best = fitted.card, best_validated(comparison.fitted)
    assert (best.method, best.chosen.hyperparameters) == (taken.method, taken.hyperparameters)
    for direction, recall in best.whole.recalls.items():
        assert recall.at(1)["unseen"] == taken.whole_recall[direction][1]["unseen"]
    advised = next(own for own in comparison.fitted if own.method == advise(comparison).method)
    assert advised is best or advised.whole.judged.value > best.whole.judged.value - MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(("private", "advised"), [(0.0, "caption"), (3.0, "image")])
def test_compare_and_an_audit_find_and_advise_the_same_of_captions(
    private: float, advised: str, tmp_path: Path
) -> None:
    """By image, by caption and by both, of the same queries; also where captions say what no projection keeps."""
    points, items = latent(N), [str(number) for number in range(N)]
    texts = [embedded("text", points + (1.0 if private else 0.1) * latent(N, seed=seed)) for seed in (1, 2)]
    _, kept, directions = np.linalg.svd(texts[0])
    outside = directions[(kept > 1e-3 * kept[0]).sum() :]  # directions that no image has anything of
    said = private * np.random.default_rng(3).standard_normal((N, len(outside))) @ outside
    made_of = np.concatenate([text + said for text in texts]).astype(np.float32)
    captions = rows("text", made_of, keys=[f"{key}#{place}" for place in range(2) for key in items], groups=items * 2)
    with opened_world("edge", tmp_path) as world:
        made = world.set("s", rows("image", embedded("image", points, noise=0.1 if private else 2.0)), captions)
        fit([made], method="ridge", device="cpu").save(world.home / "alignments" / "ridge")
        world.push(made, "ridge")
        (audit,) = audited(world, AuditRequest(collection=COLLECTION, pairs="s"))
        comparison = compare([made], methods=["ridge"], metrics=[Cosine()], device="cpu")
    (own,), (pair,), found = comparison.fitted, comparison.pairs, audit.captions
    assert own.by_way is not None
    assert found is not None
    assert pair.captions is not None
    assert found.advised == advised
    if private:
        assert pair.captions.among is not None
        assert pair.captions.among.value > own.by_way.image.value > own.by_way.caption.value
        assert own.by_way.projected.high < 0
    (asked,) = [kind for kind in found.kinds if kind.kind == CAPTIONED]
    assert asked.queries == pair.captions.queries
    assert asked.among["image"].value == pytest.approx(own.by_way.image.value, abs=1e-9)
    assert asked.among["caption"].value == pytest.approx(own.by_way.caption.value, abs=1e-9)
    assert asked.among["fused"].value == pytest.approx(own.by_way.fused.value, abs=0.05)
    (says,) = [each.says for each in advise(comparison).guidelines if each.topic == "captions"]
    for sentences in (says, " ".join(found.says)):
        assert f"Search by {advised}" in sentences
