"""The geometry of the modality gap as tables, one for each kind of measure, so that no cell repeats another."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from alignment.geometry.geometry import Geometry
    from alignment.geometry.transport import GapDistance


class GeometryTable(NamedTuple):
    """A table: its title, and rows with common names of columns."""

    title: str
    rows: list[Mapping[str, str]]


def geometry_tables(found: "Geometry") -> list[GeometryTable]:
    """Lay a geometry out: recall, distances, pairs, and what is a single number."""
    return [
        GeometryTable("Recall on these vectors, and that of a random order", _recall(found)),
        GeometryTable("Distances between images and texts, and between two halves of one modality", _distances(found)),
        GeometryTable("Pairs, and pairs drawn at random", _pairs(found)),
        GeometryTable("Other measures", _others(found)),
    ]


def _recall(found: "Geometry") -> list[Mapping[str, str]]:
    rows: list[Mapping[str, str]] = []
    for direction, recalls in found.recall.items():
        rows.append({"queries": direction, **{name: str(recall) for name, recall in recalls.items()}})
        chance = {name: f"{found.chance[direction][name]:.3f}" for name in recalls}
        rows.append({"queries": f"chance, {direction}", **chance})
    return rows


def _distances(found: "Geometry") -> list[Mapping[str, str]]:
    def row(name: str, measured: "GapDistance") -> Mapping[str, str]:
        values = {
            "debiased": measured.debiased,
            "raw": measured.raw,
            "images": measured.image_null,
            "texts": measured.text_null,
        }
        return {"distance": name, **{column: f"{value:.3f}" for column, value in values.items()}}

    return [
        row("gap: W2", found.gap),
        row("gap once centred", found.gap.centred),
        row("sliced W2", found.sliced),
        row("Bures", found.bures),
    ]


def _pairs(found: "Geometry") -> list[Mapping[str, str]]:
    return [
        {
            "metric": name.partition("(")[0],
            "pairs": f"{pair.pair:.3f}",
            "random": f"{pair.random:.3f}",
            "standard deviations apart": f"{pair.separation:.1f}",
        }
        for name, pair in found.pairs.items()
    ]


def _others(found: "Geometry") -> list[Mapping[str, str]]:
    uniformity = ", ".join(f"{modality}s {loss:.3f}" for modality, loss in found.uniformity_loss.items())
    hubness = ", ".join(f"{direction} {skewness:.2f}" for direction, skewness in found.hubness.items())
    measured = {
        "p-value of the gap": (f"{found.p:.3f}", f"{found.settings['permutations']} permutations"),
        "gap of the centroids": (f"{found.gap.centroid:.3f}", "at most 2"),
        "alignment loss": (f"{found.alignment_loss:.3f}", "0 where pairs are one point"),
        "uniformity loss": (uniformity, "0 where all are one point, about -4 where spread"),
        "hubness": (hubness, "skewness of how often an item is found; 0 is none"),
        "mutual neighbours": (f"{found.mutual_neighbours:.3f}", f"chance {found.chance_neighbours:.3f}"),
    }
    return [{"measure": name, "value": value, "is": note} for name, (value, note) in measured.items()]
