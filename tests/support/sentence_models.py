"""Models of sentence-transformers that are small and random."""

import warnings
from pathlib import Path

import torch

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "green", "square", "circle", "##s"]


def sentence_directory(directory: Path, seed: int) -> Path:
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # they have moved, and older versions have them here
        from sentence_transformers.models import Pooling, Transformer

    torch.manual_seed(seed)
    path = directory / f"bert-{seed}"
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    whole = directory / f"sentences-{seed}"
    modules = [Transformer(str(path), max_seq_length=8), Pooling(8)]
    SentenceTransformer(modules=modules, device="cpu").save(str(whole))
    return whole
