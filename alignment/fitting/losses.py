"""Losses of cross-modal retrieval, as pure functions of tensors.

Each takes the similarities S (c, B) of some queries to the items of a batch, and `target` (c,), the item that belongs
to each query; every other item of the batch is a negative, so a batch holds no second item of a group. Each returns
one number a query (c,), so that the rows of a batch may be computed in chunks: the loss of a batch is the mean over
the queries of both directions.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Recall@k is made smooth for these k, with a temperature of 1 in ranks (Patel, Tolias and Matas 2022).
SURROGATE_KS = (1, 2, 4, 8, 16)


def info_nce(S: Tensor, target: Tensor) -> Tensor:
    """`-log softmax(S)[target]` of scaled similarities (van den Oord et al. 2018; CLIP, Radford et al. 2021)."""
    return F.cross_entropy(S, target, reduction="none")


def siglip(S: Tensor, target: Tensor, bias: Tensor) -> Tensor:
    """`sum_j -log sigmoid(z_j (S_j + bias))` of scaled similarities, z 1 for the target and -1 for the others.

    Zhai et al. 2023.
    """
    logits = S + bias
    wanted = logits.gather(1, target[:, None]).squeeze(1)  # (c,)
    return F.softplus(logits).sum(dim=1) - wanted  # softplus(x) - x = softplus(-x), for the target


def hinge(S: Tensor, target: Tensor, margin: float, *, hardest: bool) -> Tensor:
    """`max(0, margin - S[target] + S[negative])` for one negative a query.

    The hardest negative is the most similar one (VSE++, Faghri et al. 2018). Before that can be learned from, take the
    hardest of those that are less similar than the target, the semi-hard (Schroff et al. 2015); where there is none,
    the least similar of all.
    """
    wanted = S.gather(1, target[:, None])  # (c, 1)
    own = F.one_hot(target, S.shape[1]).bool()  # (c, B)
    negatives = S.masked_fill(own, -torch.inf)
    negative = negatives.amax(dim=1)  # (c,)
    if not hardest:
        below = negatives.masked_fill(negatives >= wanted, -torch.inf).amax(dim=1)
        least = S.masked_fill(own, torch.inf).amin(dim=1)
        negative = torch.where(below.isfinite(), below, least)
    return (margin - wanted.squeeze(1) + negative).relu()


def recall_surrogate(S: Tensor, target: Tensor, temperature: float) -> Tensor:
    """`1 - mean over k of sigmoid(k - rank)`, the rank itself smooth: `1 + sum_j sigmoid((S_j - S[target]) / t)`.

    Patel, Tolias and Matas 2022, with k of 1, 2, 4, 8 and 16; half a rank is added to k, so that rank 1 counts for k 1.
    """
    wanted = S.gather(1, target[:, None])  # (c, 1)
    before = ((S - wanted) / temperature).sigmoid()
    rank = 0.5 + before.sum(dim=1)  # (c,); the target itself adds a half
    ks = torch.tensor(SURROGATE_KS, dtype=S.dtype, device=S.device)
    return 1 - (ks[None] + 0.5 - rank[:, None]).sigmoid().mean(dim=1)


def structure(before: Tensor, after: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence between the neighbourhoods of one modality before and after its head, in nats, (c,).

    STRUCTURE (arXiv 2506.16895), with one level: a neighbourhood is the softmax of cosine similarities over a batch.

    Args:
        before, after: cosine similarities (c, B) of some items to all of the batch.
        temperature: of the softmax.
    """
    log_p, log_q = (F.log_softmax(side / temperature, dim=1) for side in (before, after))
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=after.dtype, device=after.device))
    p, q = log_p.exp(), log_q.exp()
    return ((p * (log_p - log_m)).sum(dim=1) + (q * (log_q - log_m)).sum(dim=1)) / 2
