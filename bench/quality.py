"""Quality of alignments on real corpora: every method and every metric over grouped splits, beside independent code.

`bench.corpora` says how to install more corpora than the demo's. Where both emoji are, alignments fitted on the one are
tested on the other too. `python -m bench.quality` prints all tables, `python -m bench.quality stamps` those of one
corpus, `python -m bench.seen_unseen` those of seen and unseen items alone; docs/alignment-figures.md keeps them.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cca_zoo.linear import RidgeCCA
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from alignment.fitting.cross_validation import best_of, cross_validate
from alignment.fitting.fit import fit_metrics
from alignment.fitting.heads import HEADS
from alignment.fitting.methods import METHODS, FitSpec, Fitter, fewest_groups
from alignment.metrics import Cosine, Metric, parse
from alignment.modality import MODALITIES
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import recall_at
from alignment.vectors import FloatArray, l2_normalize
from bench import corpora, seen_unseen
from bench.figure import Figure
from bench.tables import markdown

# What both sides of a figure are asked.
ASKED = (
    "All fit the same training pairs and are asked the same held-out queries among the same items, under "
    "cosine unless a metric is named."
)

SPLITS, FOLDS, HELD_OUT = 5, 2, 0.25
CPU = torch.device("cpu")
NAMES = (*corpora.NAMES, "emoji to emoji-google")
# Euclid and dot order unit vectors as cosine does.
PLAIN = ("cosine", "manhattan", "chi2", "js", "hellinger", "kl-query-item", "kl-item-query", "w1", "dot+nnn")
LEARNED = ("bilinear", "mol", "mlp")
# What the literature of frozen encoders recommends, as far as it is among the methods.
PUBLISHED = ("procrustes", "ridge", "rcca", "asif", "linear", "fusemix", "star-glu")


@dataclass(frozen=True, slots=True)
class Corpus:
    """What to fit on and what to test on: the same, or two renderings of the same groups."""

    name: str
    fitted: GroupedEmbeddings
    tested: GroupedEmbeddings


@dataclass(slots=True)
class Row:
    """Recall@1/5/10 by metric, means of both directions, one triple a split; and what was chosen in the first split."""

    recalls: dict[str, list[list[float]]] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def at_10(self, metric: str = "cosine") -> npt.NDArray[np.float64]:
        """Recall@10 of every split."""
        return np.array(self.recalls[metric])[:, -1]


def figures(names: Sequence[str] = NAMES) -> list[Figure]:
    """Measure every corpus that is here, and print its tables."""
    found = []
    for corpus in _read(names):
        rows = measure(corpus)
        groups = len(np.intersect1d(corpus.fitted.groups, corpus.tested.groups))
        print(f"\n### {corpus.name}: {groups:,} groups, {len(corpus.tested.image.groups):,} images\n")
        print(f"{by_method(rows)}\n\n{by_metric(rows)}\n", flush=True)
        best = max((name for name in PUBLISHED if name in rows), key=lambda name: rows[name].at_10().mean())
        gain = rows["auto"].at_10() - rows[best].at_10()
        found.append(Figure(f"{corpus.name}: Recall@10 of auto over {best}, the best published", gain.mean(), 0.03))
        for ours, (theirs, _run) in INDEPENDENT.items():
            gain = rows[ours].at_10() - rows[theirs].at_10()
            found.append(Figure(f"{corpus.name}: Recall@10 of {ours} over {theirs}", gain.mean(), -0.005))
    return [*found, *seen_unseen.figures([name for name in names if name in corpora.NAMES])]


def _read(names: Sequence[str]) -> Iterator[Corpus]:
    """Encode what is installed."""
    needed = {part for name in names for part in name.split(" to ")}
    with corpora.encoded(needed) as sets:
        for name in names:
            first, _, second = name.partition(" to ")
            if {first, second or first} <= sets.keys():
                fitted, tested = corpora.labelled([sets[first], sets[second or first]])
                yield Corpus(name, fitted, tested)


def measure(corpus: Corpus) -> dict[str, Row]:
    """Choose the hyperparameters of every method by cross-validation within each split, and test them outside."""
    rows: dict[str, Row] = {}
    groups = np.intersect1d(corpus.fitted.groups, corpus.tested.groups)
    for seed in range(SPLITS):
        shuffled = np.random.default_rng(seed).permutation(groups)
        held = round(HELD_OUT * len(groups))
        test, known = corpus.tested.only(shuffled[:held]), corpus.fitted.only(shuffled[held:])
        task = FitSpec(seed=seed)
        racing = [name for name in METHODS if len(known.groups) >= fewest_groups(name)]
        scores = cross_validate(known, racing, task, folds=FOLDS, device=CPU)
        best = {name: best_of(s for s in scores if s.method == name) for name in {s.method for s in scores}}
        chosen: dict[str, tuple[str, Mapping[str, Any]]] = {
            name: (name, best[name].hyperparameters) for name in METHODS if name in best
        }
        for name in METHODS:  # heads that are made for more data, as they are published but for their size
            if name not in racing:
                chosen[name] = (name, HEADS[name].candidates(*_dims(known))[0])
        chosen["auto"] = (best_of(scores).method, best_of(scores).hyperparameters)
        for name, (method, hyperparameters) in chosen.items():
            row = rows.setdefault(name, Row(chosen={"method": method, **hyperparameters}))
            projections = Fitter(method, known, CPU, task).fit(hyperparameters)
            metrics = [parse(text) for text in (*PLAIN, *(LEARNED if name == "auto" else ()))]
            weights = fit_metrics(metrics, known.project(projections).sound(), task=task, device=CPU)
            aligned = test.project(projections)
            for metric in metrics:
                row.recalls.setdefault(str(metric), []).append(_recalls(aligned, metric, weights))
            if name in INDEPENDENT:
                label, run = INDEPENDENT[name]
                theirs = rows.setdefault(label, Row(chosen=hyperparameters))
                theirs.recalls.setdefault("cosine", []).append(
                    _recalls(run(known, test, hyperparameters), Cosine(), {})
                )
        print(f"{corpus.name}: split {seed + 1} of {SPLITS}", file=sys.stderr, flush=True)
    return rows


def _dims(data: GroupedEmbeddings) -> tuple[int, int]:
    return data.image.vectors.shape[1], data.text.vectors.shape[1]


def _recalls(aligned: GroupedEmbeddings, metric: Metric, weights: Mapping[str, Any]) -> list[float]:
    both = aligned.ranks({modality: metric.bind(weights, modality) for modality in MODALITIES})
    return [float(np.mean([recall_at(side, k) for side in both])) for k in KS]


# The same methods from elsewhere, with the hyperparameters that were chosen for ours


def _centred(training: GroupedEmbeddings) -> tuple[list[FloatArray], list[FloatArray]]:
    sides = [l2_normalize(side) for side in training.pairs()]
    means = [side.mean(axis=0) for side in sides]
    return [side - mean for side, mean in zip(sides, means, strict=True)], means


def _tested(test: GroupedEmbeddings, means: list[FloatArray]) -> list[FloatArray]:
    return [l2_normalize(side.vectors) - mean for side, mean in zip((test.image, test.text), means, strict=True)]


def _aligned(test: GroupedEmbeddings, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> GroupedEmbeddings:
    return GroupedEmbeddings(
        ModalityEmbeddings(l2_normalize(x), test.image.groups), ModalityEmbeddings(l2_normalize(y), test.text.groups)
    )


def sklearn_ridge(training: GroupedEmbeddings, test: GroupedEmbeddings, chosen: Mapping[str, Any]) -> GroupedEmbeddings:
    """The same penalty with scikit-learn."""
    (X, Y), means = _centred(training)
    x, y = _tested(test, means)
    source, target = (X, Y) if chosen["target"] == "text" else (Y, X)
    penalty = chosen["penalty"] * float(np.mean(np.sum(source.astype(np.float64) ** 2, axis=0)))
    model = Ridge(alpha=penalty, fit_intercept=False).fit(source, target)
    return _aligned(test, *((model.predict(x), y) if chosen["target"] == "text" else (x, model.predict(y))))


def scipy_procrustes(
    training: GroupedEmbeddings, test: GroupedEmbeddings, chosen: Mapping[str, Any]
) -> GroupedEmbeddings:
    """The same components with scikit-learn and scipy."""
    sides, means = _centred(training)
    axes = [PCA(chosen["components"], svd_solver="full").fit(side).components_.T for side in sides]
    rotation, _scale = orthogonal_procrustes(sides[0] @ axes[0], sides[1] @ axes[1])
    x, y = _tested(test, means)
    return _aligned(test, x @ axes[0] @ rotation, y @ axes[1])


def zoo_cca(training: GroupedEmbeddings, test: GroupedEmbeddings, chosen: Mapping[str, Any]) -> GroupedEmbeddings:
    """The same shrinkages and components with cca-zoo, which has no power of the correlations."""
    sides, means = _centred(training)
    shares = []
    for side, name in zip(sides, ("shrinkage_image", "shrinkage_text"), strict=True):
        penalty = chosen[name] * float(np.mean(np.sum(side.astype(np.float64) ** 2, axis=0))) / (len(side) - 1)
        shares.append(penalty / (1 + penalty))  # it shrinks a covariance C to (1 - c) C + c I
    model = RidgeCCA(chosen["components"], center=False, shrinkage=shares).fit(
        [side.astype(np.float64) for side in sides]
    )
    x, y = (side @ weight for side, weight in zip(_tested(test, means), model.weights_, strict=True))
    return _aligned(test, x, y)


def sklearn_cca(training: GroupedEmbeddings, test: GroupedEmbeddings, chosen: Mapping[str, Any]) -> GroupedEmbeddings:
    """Canonical correlations without shrinkage, on principal components instead, with scikit-learn."""
    sides, means = _centred(training)
    axes = [PCA(128, svd_solver="full").fit(side).components_.T for side in sides]
    X, Y = (side @ axis for side, axis in zip(sides, axes, strict=True))
    model = CCA(64, scale=False, max_iter=2000).fit(X, Y)
    x, y = (side @ axis for side, axis in zip(_tested(test, means), axes, strict=True))
    return _aligned(test, x @ model.x_rotations_, y @ model.y_rotations_)


Independent = Callable[[GroupedEmbeddings, GroupedEmbeddings, Mapping[str, Any]], GroupedEmbeddings]
INDEPENDENT: dict[str, tuple[str, Independent]] = {
    "ridge": ("scikit-learn ridge", sklearn_ridge),
    "procrustes": ("scipy procrustes", scipy_procrustes),
    "rcca": ("cca-zoo ridge CCA", zoo_cca),
    "kcca": ("scikit-learn PCA and CCA", sklearn_cca),
}


# Tables


def by_method(rows: Mapping[str, Row]) -> str:
    """Recall@1/5/10 under cosine, mean and standard deviation over the splits."""
    lines = [["method", *(f"Recall@{k}" for k in KS), "in the first split"]]
    for name, row in rows.items():
        values = np.array(row.recalls["cosine"])  # (splits, 3)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(axis=0), values.std(axis=0), strict=True)]
        settings = [str(v) if n == "method" else f"{n} {v}" for n, v in row.chosen.items() if v != name]
        lines.append([name, *cells, ", ".join(settings)])
    return markdown(lines)


def by_metric(rows: Mapping[str, Row]) -> str:
    """Recall@10 of every method under every metric."""
    metrics = [str(parse(text)) for text in (*PLAIN, *LEARNED)]
    lines = [["Recall@10", *(metric.partition("(")[0] for metric in metrics)]]
    for name, row in rows.items():
        if len(row.recalls) > 1:
            cells = [
                f"{row.at_10(m).mean():.3f} ± {row.at_10(m).std():.3f}" if m in row.recalls else "" for m in metrics
            ]
            lines.append([name, *cells])
    return markdown(lines)


if __name__ == "__main__":
    for figure in figures(sys.argv[1:] or NAMES):
        print(figure)
