"""Small text encoders that offer graphs of their texts, found by class: `tests.support.compilable:BagOfWords`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from typing_extensions import override

from alignment.modality import Modality
from connector.encoding.encoders import Encoder
from connector.encoding.text_graph import TextGraph
from tests.support.fakes import WORDS

DIM = 32  # so that weights are long enough for a file of their own
MOST_TOKENS = 40
VOCABULARY = {word: number for number, word in enumerate(("[PAD]", "[CLS]", "[UNK]", "a", "word", *WORDS))}
INPUTS = ("input_ids", "attention_mask")


class Mean(nn.Module):
    """The mean of the vectors of the words of a text, times `factor`."""

    def __init__(self, seed: int, factor: float = 1.0):
        super().__init__()
        table = np.random.default_rng(seed).standard_normal((len(VOCABULARY), DIM))
        self.table = nn.Parameter(torch.from_numpy(table.astype(np.float32)), requires_grad=False)
        self.factor = factor

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask[:, :, None].float()  # (n, tokens, 1)
        return self.factor * (self.table[input_ids] * weights).sum(dim=1) / weights.sum(dim=1)


class BagOfWords(Encoder):
    """`tests.support.compilable:BagOfWords:SEED`."""

    scheme = "tests.support.compilable:BagOfWords"
    modalities = ("text",)

    def __init__(self, name: str, device: torch.device):
        super().__init__(name, device)
        self.model = Mean(int(name or 0))
        self.tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        self.tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 1)])
        self.tokenizer.enable_truncation(MOST_TOKENS)
        self.tokenizer.enable_padding()
        self._identify(self.model, self.tokenizer.to_str())

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Tensor:
        texts = self.tokenizer.encode_batch(list(prepared))
        tokens = ([text.ids for text in texts], [text.attention_mask for text in texts])
        embedded: Tensor = self.model(*map(torch.tensor, tokens))
        return embedded

    @override
    def text_graph(self) -> TextGraph | None:
        return TextGraph(self.model, self.tokenizer.to_str(), INPUTS)


class Prompted(BagOfWords):
    """Puts a word in front of every text."""

    @override
    def prepare(self, modality: Modality, content: Any) -> Any:
        return f"navy {content}"

    @override
    def text_graph(self) -> TextGraph | None:
        return TextGraph(self.model, self.tokenizer.to_str(), INPUTS, "navy ")


class Doubled(BagOfWords):
    """Offers a graph of another model."""

    @override
    def text_graph(self) -> TextGraph | None:
        return TextGraph(Mean(int(self.name or 0), 2), self.tokenizer.to_str(), INPUTS)


class Unpadded(BagOfWords):
    """Offers a tokenizer of one text at a time."""

    @override
    def text_graph(self) -> TextGraph | None:
        alone = Tokenizer.from_str(self.tokenizer.to_str())
        alone.no_padding()
        return TextGraph(self.model, alone.to_str(), INPUTS)


class Failing(BagOfWords):
    """Cannot make its graph."""

    @override
    def text_graph(self) -> TextGraph | None:
        raise ValueError("of another architecture")


class Without(BagOfWords):
    """Has no graph of this model."""

    @override
    def text_graph(self) -> TextGraph | None:
        return None
