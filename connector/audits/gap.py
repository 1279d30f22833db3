"""The modality gap of an embedding set."""

from alignment.geometry.geometry import Geometry, geometry, sampled
from alignment.model.alignment import Alignment
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from connector.releases.chain import check_encoder
from connector.requests import GapRequest


def measure_gap(request: GapRequest, embedding_set: EmbeddingSet, alignment: Alignment | None) -> Geometry:
    """Measure the geometry of held-out groups, with Recall@K beside it.

    Args:
        request: the seed and the size of the sample.
        embedding_set: the vectors.
        alignment: projects them; None: they stay as encoded.

    Raises:
        MismatchError: the alignment was fitted for other encoders.
        GapError: the vectors are in two spaces, or there are too few groups.
    """
    hold_out = HoldOut() if alignment is None else alignment.card.hold_out
    if alignment is not None:
        for modality, card in embedding_set.card.encoders.items():
            check_encoder(alignment, modality, card, f"embedding set {embedding_set.path}")
    sample = sampled(embedding_set, hold_out, groups=request.sample, seed=request.seed)
    if alignment is not None:
        sample = sample.project((alignment.projections["image"], alignment.projections["text"]))
    return geometry(sample, seed=request.seed)
