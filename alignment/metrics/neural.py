"""The learned metrics as torch modules: queries (n, d) and items (m, d) in, scores (n, m) out.

Every module holds `dim`, the dimension of the shared space, so that its weights alone rebuild it.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class LearnedModule(nn.Module):
    """A metric with weights.

    Attributes:
        floats_per_pair: numbers that scoring one pair holds, from which the size of a chunk follows.
    """

    floats_per_pair = 1

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("dim", torch.tensor([dim]))


class BilinearModule(LearnedModule):
    """`q' W x` with `W = I + L R' + diag(B_1, ..., B_b)`; before training W is the identity."""

    def __init__(self, dim: int, *, rank: int, blocks: int):
        super().__init__(dim)
        size = -(-dim // blocks)
        self.left = nn.Parameter(torch.zeros(dim, rank))
        self.right = nn.Parameter(torch.randn(dim, rank) / dim**0.5)
        self.blocks = nn.Parameter(torch.zeros(blocks, size, size))

    def matrix(self) -> Tensor:
        """W, (d, d)."""
        dim = len(self.left)
        identity = torch.eye(dim, dtype=self.left.dtype, device=self.left.device)
        diagonal: Tensor = torch.block_diag(*self.blocks)  # type: ignore[no-untyped-call]
        return identity + self.left @ self.right.T + diagonal[:dim, :dim]

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        """Scores (n, m)."""
        scores: Tensor = queries @ self.matrix() @ items.T
        return scores


class MixtureModule(LearnedModule):
    """`sum_ab pi_ab(q, x) <f_a(q), g_b(x)>`, with unit vectors f and g, and weights pi that are positive and sum to 1.

    The weights are a softmax of gates. A query sets its gates freely, an item moves each of them by less than `sway`.
    Before training, component a holds every k-th coordinate from a on, and nearly all weight lies on equal components:
    the score is a mean of k partial cosines.
    """

    hidden = 64
    own_gate = 5.0  # of equal components, against 0 of any others, before training

    def __init__(self, dim: int, *, components: int, size: int, sway: float):
        super().__init__(dim)
        self.components, self.size, self.sway, pairs = components, size, sway, components**2
        self.floats_per_pair = 4 * pairs + self.hidden
        start = torch.zeros(dim, components, size)
        for component in range(components):
            chosen = torch.arange(dim)[component::components][:size]
            start[chosen, component, torch.arange(len(chosen))] = 1.0
        noise = 0.01 / dim**0.5
        self.query = nn.Parameter(start.flatten(1) + noise * torch.randn(dim, components * size))
        self.item = nn.Parameter(start.flatten(1) + noise * torch.randn(dim, components * size))
        self.gate_query = nn.Linear(dim, pairs)
        self.gate_item = nn.Linear(dim, pairs, bias=False)
        self.gate_pair = nn.Sequential(nn.Linear(pairs, self.hidden), nn.SiLU(), nn.Linear(self.hidden, pairs))
        nn.init.zeros_(self.gate_query.weight)
        with torch.no_grad():
            self.gate_query.bias.copy_(self.own_gate * torch.eye(components).flatten())

    def query_components(self, X: Tensor) -> Tensor:
        """f, (n, components, size)."""
        return normalize((X @ self.query).view(X.shape[0], self.components, self.size), dim=2)

    def item_components(self, X: Tensor) -> Tensor:
        """g, (m, components, size)."""
        return normalize((X @ self.item).view(X.shape[0], self.components, self.size), dim=2)

    def mixed_query(self, X: Tensor) -> Tensor:
        """What the components of an item are weighed with where it does not move the gates: (n, components, size)."""
        gates = self.gate_query(X).softmax(dim=1).view(X.shape[0], self.components, self.components)  # (n, a, b)
        return torch.einsum("nab,nas->nbs", gates, self.query_components(X))

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        """Scores (n, m)."""
        f, g = self.query_components(queries), self.item_components(items)
        products = torch.einsum("nas,mbs->nmab", f, g).flatten(2)  # (n, m, pairs)
        moved = torch.tanh(self.gate_item(items)[None] + self.gate_pair(products))
        gates = self.gate_query(queries)[:, None] + self.sway * moved
        scores: Tensor = (gates.softmax(dim=2) * products).sum(dim=2)
        return scores


class PerceptronModule(LearnedModule):
    """A perceptron with one hidden layer over `[q, x, |q - x|, q * x]`."""

    def __init__(self, dim: int, *, hidden: int):
        super().__init__(dim)
        self.floats_per_pair = 2 * dim + 2 * hidden
        self.of_query = nn.Linear(dim, hidden)
        self.of_item = nn.Linear(dim, hidden, bias=False)
        self.of_difference = nn.Linear(dim, hidden, bias=False)
        self.of_product = nn.Linear(dim, hidden, bias=False)
        self.last = nn.Linear(hidden, 1)

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        """Scores (n, m)."""
        q, x = queries[:, None], items[None]
        first = self.of_query(queries)[:, None] + self.of_item(items)[None]  # (n, m, hidden)
        first = first + self.of_difference((q - x).abs()) + self.of_product(q * x)
        scores: Tensor = self.last(first.relu())
        return scores.squeeze(2)
