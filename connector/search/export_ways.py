"""The three ways to search items, for services that query Qdrant without modalign.

See `connector.search.item_search`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from alignment.metrics import Metric, Rescored
from alignment.model.alignment import Alignment
from alignment.retrieval.ways import CAPTION, FUSED, IMAGE
from alignment.vectors import l2_normalize
from connector.releases.fusion import WAY_OF, Fusion
from connector.releases.release import lower

# Points a page, where captions have to be ordered again.
PAGE = 64

CAPTIONS = (
    "Each group is one item. It scores what its best caption scores. Find its image by the payload field `group`."
)
IN_ORDER = " Groups come best first."
OTHER_ORDER = (
    " The offset of seen items is for queries of images: get back the metric's own score of captions as `seen_offset` "
    "says, and order groups by it. One that is not in the answer cannot score more than the last caption of the answer "
    "would if it were a seen one: fetch more groups until the last that you want scores as much. `group_size` has to "
    "cover all captions of an item of which the fit saw some alone."
)
IMAGES = "One hit a group, by its best image."
BOTH = (
    "Send both requests. An item that one of them found is looked for by the other, with a filter on its `group`. "
    "Standardise: (score - mean) / deviation, with scores of images as they order and scores of captions as above. An "
    "item with both scores is the sum of weight * standardised; one with one of them is that one standardised. No item "
    "that neither found scores more than the better of the last two standardised scores."
)


def describe(
    fusion: Fusion | None, request: Mapping[str, Any], alignment: Alignment, metric: Metric
) -> dict[str, Any] | None:
    """Return the requests that find items by image and by caption, and how their scores are fused.

    Args:
        fusion: of the release; None: `fused` is null.
        request: the one that finds images for a text.
        alignment: of the release.
        metric: of the release.

    Returns:
        None where a service would have to rescore candidates, or where queries of captions are other vectors than the
        query graph makes.
    """
    lowerings = lower(alignment, metric, device="cpu")
    if any(isinstance(lowering, Rescored) for lowering in lowerings.values()):
        return None
    probe = l2_normalize(np.random.default_rng(0).standard_normal((4, alignment.dim)))
    if not np.array_equal(lowerings["image"].query(probe), lowerings["text"].query(probe)):
        return None
    offset = alignment.card.seen_offsets.get(str(metric), {}).get("text", 0.0)
    order = OTHER_ORDER if offset else IN_ORDER
    limit = request["body"]["limit"]
    captions = _grouped(request, "text", PAGE if offset else limit)
    return {
        IMAGE: {**_grouped(request, "image", limit), "meaning": IMAGES + IN_ORDER},
        CAPTION: {**captions, "meaning": CAPTIONS + order},
        FUSED: None
        if fusion is None
        else {
            **{
                WAY_OF[modality]: {
                    "mean": standard.mean,
                    "deviation": standard.deviation,
                    "weight": fusion.weight if modality == "text" else 1 - fusion.weight,
                }
                for modality, standard in fusion.standards.items()
            },
            "queries": fusion.queries,
            "meaning": BOTH,
        },
    }


def _grouped(request: Mapping[str, Any], using: str, limit: int) -> dict[str, Any]:
    body = {**request["body"], "using": using, "limit": limit, "group_by": "group", "group_size": 1}
    return {**request, "path": f"{request['path']}/groups", "body": body}
