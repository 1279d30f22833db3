"""What an encoder offers, so that its texts can be encoded without torch: see `connector.encoding.compiling`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# What a tokenizer of the package `tokenizers` gives for a text, by the name of the input that it is for.
TOKEN_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


@dataclass(frozen=True, slots=True)
class TextGraph:
    """A text encoder as a module behind a tokenizer.

    Attributes:
        module: takes `inputs` in their order, each (n, tokens) int64, and returns embeddings (n, dim) float32.
        tokenizer: JSON of the package `tokenizers`, with truncation and padding.
        inputs: names of `TOKEN_FIELDS`.
        prompt: stands in front of every text.
    """

    module: "nn.Module"
    tokenizer: str
    inputs: Sequence[str]
    prompt: str = ""
