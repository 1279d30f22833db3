"""A model of sentence-transformers as one graph: transformer, pooling, normalisation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from torch import Tensor, nn

from connector.encoding.text_graph import TOKEN_FIELDS, TextGraph

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class _Sentence(nn.Module):
    """From tokens (n, tokens), by the names `inputs`, to embeddings (n, dim)."""

    def __init__(self, model: "SentenceTransformer", inputs: Sequence[str]):
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Tensor:
        tokens = [given for given in (first, second, third) if given is not None]
        embedded: Tensor = self.model(dict(zip(self.inputs, tokens, strict=True)))["sentence_embedding"]
        return embedded[:, : self.model.truncate_dim]


def sentence_graph(model: "SentenceTransformer", prompt: str) -> TextGraph | None:
    """Return the graph of a model; None: its tokenizer is none of the package `tokenizers`, or cannot pad."""
    tokenizer, limit = model.tokenizer, model.max_seq_length
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or limit is None or getattr(tokenizer, "pad_token_id", None) is None:
        return None
    own = Tokenizer.from_str(backend.to_str())
    own.enable_truncation(limit, direction=tokenizer.truncation_side)
    own.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        pad_type_id=tokenizer.pad_token_type_id,
    )
    inputs = tuple(name for name in TOKEN_FIELDS if name in tokenizer.model_input_names)
    return TextGraph(_Sentence(model, inputs), own.to_str(), inputs, prompt)
