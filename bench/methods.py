"""Closed-form methods on real corpora: Recall@K of each over grouped splits, beside independent implementations.

The emoji of the demo are always there. Two more corpora are used where they are installed:

    apt-get install tuxpaint-stamps-default     photographs and drawings with English names
    npm install emoji-datasource-google         the emoji of another designer, under ./node_modules

`python -m bench.methods` prints the tables; docs/alignment-figures.md keeps them.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from alignment.embeddings import MODALITIES
from alignment.fit import best_of, cross_validate
from alignment.labelled import Labelled, Side
from alignment.methods import METHODS, Fitter, Task
from alignment.metrics import Cosine
from alignment.recall import group_codes, recall_at
from alignment.train import KS
from alignment.vectors import FloatArray, unit
from bench.figure import Figure
from connector.demo import ENCODERS, write_emoji
from connector.home import Home
from connector.provenance import upgrade
from connector.settings import Settings

SPLITS, FOLDS, HELD_OUT = 5, 4, 0.25
CPU = torch.device("cpu")
COSINE = dict.fromkeys(MODALITIES, Cosine())
STAMPS = Path("/usr/share/tuxpaint/stamps")
GOOGLE = Path("node_modules/emoji-datasource-google")


@dataclass(frozen=True, slots=True)
class Row:
    """Recall@1/5/10 of a method, the mean of both directions: (splits, 3), and what was chosen in the first split."""

    method: str
    recalls: npt.NDArray[np.float64]
    chosen: Mapping[str, Any]


def figures() -> list[Figure]:
    """Measure every corpus that is here, print its table, and compare the best of all with the best linear one."""
    found = []
    for name, data in corpora():
        rows = measure(data)
        print(f"\n{name}, {len(np.unique(data.image.groups)):,} groups\n\n{table(rows)}\n", flush=True)
        by_name = {row.method: row.recalls[:, -1].mean() for row in rows}
        best = max(value for method, value in by_name.items() if method in ("procrustes", "ridge", "rcca"))
        gain = by_name["auto"] - best
        found.append(Figure(f"{name}, Recall@10 of auto over the best linear closed form", gain, 0.03))
        for ours, theirs in (("ridge", "scikit-learn ridge"), ("procrustes", "scipy procrustes")):
            gain = by_name[ours] - by_name[theirs]
            found.append(Figure(f"{name}, Recall@10 of {ours} over {theirs}", gain, -0.005))
    return found


def corpora() -> Iterator[tuple[str, Labelled]]:
    """Encode what is installed."""
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings.load(home=directory, database_url=f"sqlite:///{directory}/modalign.db")
        upgrade(settings.database_url)
        with Home(settings) as home:
            yield "emoji", _encoded(home, "emoji", write_emoji(home.settings.home / "emoji"))
            for name, place, items in (("stamps", STAMPS, _stamps), ("emoji-google", GOOGLE, _google)):
                if place.exists():
                    yield name, _encoded(home, name, _manifest(home.settings.home / name, items()))
                else:
                    print(f"{name}: not installed, {place} is not there")


def _stamps() -> Iterator[tuple[Path, str]]:
    for text in sorted(STAMPS.rglob("*.txt")):
        caption = text.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip()
        if caption and (picture := text.with_suffix(".png")).exists():
            yield picture, caption


def _google() -> Iterator[tuple[Path, str]]:
    for emoji in json.loads((GOOGLE / "emoji.json").read_text(encoding="utf-8")):
        picture = GOOGLE / "img" / "google" / "64" / emoji["image"]
        if emoji["name"] and picture.exists():
            yield picture, ", ".join([emoji["name"].lower(), *emoji["short_names"]]).replace("_", " ")


def _manifest(directory: Path, items: Iterator[tuple[Path, str]]) -> Path:
    """Copy the pictures beside a manifest: one that points elsewhere is refused."""
    directory.mkdir()
    rows = []
    for number, (picture, caption) in enumerate(items):
        shutil.copyfile(picture, directory / f"{number}.png")
        rows.append({"key": f"{number}", "image": f"{number}.png", "caption": caption, "group": caption})
    manifest = directory / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


def _encoded(home: Home, name: str, manifest: Path) -> Labelled:
    embedding_set = home.encode(manifest, name, ENCODERS).made
    rows = {modality: embedding_set.load(modality) for modality in MODALITIES}
    codes = group_codes(rows["image"].groups, rows["text"].groups)
    image, text = (Side(rows[m].vectors, groups) for m, groups in zip(MODALITIES, codes, strict=True))
    return Labelled(image, text)


def measure(data: Labelled) -> list[Row]:
    """Choose the hyperparameters of every method by cross-validation within each split, and test them outside."""
    recalls: dict[str, list[list[float]]] = {}
    chosen: dict[str, Mapping[str, Any]] = {}
    groups = np.unique(data.image.groups)
    for seed in range(SPLITS):
        shuffled = np.random.default_rng(seed).permutation(groups)
        held = round(HELD_OUT * len(groups))
        test, training = data.only(shuffled[:held]), data.only(shuffled[held:])
        scores = cross_validate(training, list(METHODS), Task(seed=seed), folds=FOLDS, device=CPU)
        best = {
            name: best_of(s for s in scores if s.method == name) for name in dict.fromkeys(s.method for s in scores)
        }
        best["auto"] = best_of(scores)
        for name, candidate in best.items():
            fitted = Fitter(candidate.method, training, CPU).fit(candidate.hyperparameters)
            recalls.setdefault(name, []).append(_recalls(test.project(fitted)))
            method = {"method": candidate.method} if name == "auto" else {}
            chosen.setdefault(name, method | dict(candidate.hyperparameters))
            if name in INDEPENDENT:
                label, theirs = INDEPENDENT[name]
                recalls.setdefault(label, []).append(_recalls(theirs(training, test, candidate.hyperparameters)))
                chosen.setdefault(label, candidate.hyperparameters)
    return [Row(name, np.array(values), chosen[name]) for name, values in recalls.items()]


def _recalls(aligned: Labelled) -> list[float]:
    both = aligned.ranks(COSINE)
    return [float(np.mean([recall_at(side, k) for side in both])) for k in KS]


def _centred(training: Labelled) -> tuple[list[FloatArray], list[FloatArray]]:
    sides = [unit(side) for side in training.pairs()]
    means = [side.mean(axis=0) for side in sides]
    return [side - mean for side, mean in zip(sides, means, strict=True)], means


def sklearn_ridge(training: Labelled, test: Labelled, chosen: Mapping[str, Any]) -> Labelled:
    """The same penalty with scikit-learn."""
    (X, Y), (mean_x, mean_y) = _centred(training)
    x, y = unit(test.image.vectors) - mean_x, unit(test.text.vectors) - mean_y
    source, target = (X, Y) if chosen["target"] == "text" else (Y, X)
    penalty = chosen["penalty"] * float(np.mean(np.sum(source.astype(np.float64) ** 2, axis=0)))
    model = Ridge(alpha=penalty, fit_intercept=False).fit(source, target)
    x, y = (model.predict(x), y) if chosen["target"] == "text" else (x, model.predict(y))
    return Labelled(Side(unit(x), test.image.groups), Side(unit(y), test.text.groups))


def scipy_procrustes(training: Labelled, test: Labelled, chosen: Mapping[str, Any]) -> Labelled:
    """The same components with scikit-learn and scipy."""
    sides, means = _centred(training)
    axes = [PCA(chosen["components"], svd_solver="full").fit(side).components_.T for side in sides]
    rotation, _scale = orthogonal_procrustes(sides[0] @ axes[0], sides[1] @ axes[1])
    x = (unit(test.image.vectors) - means[0]) @ axes[0] @ rotation
    y = (unit(test.text.vectors) - means[1]) @ axes[1]
    return Labelled(Side(unit(x), test.image.groups), Side(unit(y), test.text.groups))


Independent = Callable[[Labelled, Labelled, Mapping[str, Any]], Labelled]
INDEPENDENT: dict[str, tuple[str, Independent]] = {
    "ridge": ("scikit-learn ridge", sklearn_ridge),
    "procrustes": ("scipy procrustes", scipy_procrustes),
}


def table(rows: list[Row]) -> str:
    """Lay the rows out in Markdown: mean and standard deviation over the splits."""
    names = ["method", *(f"Recall@{k}" for k in KS), "chosen in the first split"]
    lines = [" | ".join(names), " | ".join(["---"] * len(names))]
    for row in rows:
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(row.recalls.mean(axis=0), row.recalls.std(axis=0), strict=True)]
        parameters = (f"{name} {value}" for name, value in row.chosen.items())
        lines.append(" | ".join([row.method, *cells, ", ".join(parameters)]))
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    for figure in figures():
        print(figure)
