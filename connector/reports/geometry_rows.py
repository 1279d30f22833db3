"""The geometry of the modality gap as rows of a table."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignment.geometry.geometry import Geometry
    from alignment.geometry.transport import GapDistance


def geometry_rows(found: "Geometry") -> Iterator[dict[str, str]]:
    """Yield a row per measure: name, value and the value to compare it with."""

    def row(name: str, value: str, beside: str) -> dict[str, str]:
        return {"measure": name, "value": value, "beside": beside}

    def distance(name: str, measured: "GapDistance") -> dict[str, str]:
        nulls = f"raw {measured.raw:.3f}, images {measured.image_null:.3f}, texts {measured.text_null:.3f} apart"
        return row(name, f"{measured.debiased:.3f}", nulls)

    for direction, recalls in found.recall.items():
        for name, recall in recalls.items():
            yield row(f"{name} {direction}", str(recall), f"chance {found.chance[direction][name]:.3f}")
    yield distance("gap: W2, debiased", found.gap)
    yield row("gap, p-value", f"{found.p:.3f}", f"{found.settings['permutations']} permutations")
    yield row("gap of the centroids", f"{found.gap.centroid:.3f}", "at most 2")
    yield distance("gap once centred", found.gap.centred)
    yield distance("sliced W2, debiased", found.sliced)
    yield distance("Bures, debiased", found.bures)
    for name, pair in found.pairs.items():
        beside = f"random pairs {pair.random:.3f}: {pair.separation:.1f} standard deviations"
        yield row(f"pairs, {name.partition('(')[0]}", f"{pair.pair:.3f}", beside)
    yield row("alignment loss", f"{found.alignment_loss:.3f}", "0 where pairs are one point")
    for modality, loss in found.uniformity_loss.items():
        yield row(f"uniformity loss of {modality}s", f"{loss:.3f}", "0 where all are one point, about -4 where spread")
    for direction, skewness in found.hubness.items():
        yield row(f"hubness {direction}", f"{skewness:.2f}", "skewness of how often an item is found; 0 is none")
    yield row("mutual neighbours", f"{found.mutual_neighbours:.3f}", f"chance {found.chance_neighbours:.3f}")
