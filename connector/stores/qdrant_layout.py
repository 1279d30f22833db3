"""A collection's layout in the classes of qdrant_client, and what a server tells of it."""

from typing import Any

from qdrant_client import models

from connector.stores.layout import COMPRESSIONS, Datatype, Layout, PayloadKind

DATATYPES: dict[models.Datatype | None, Datatype] = {
    models.Datatype.FLOAT16: "float16",
    models.Datatype.UINT8: "uint8",
}


def index_schema(
    kind: PayloadKind,
) -> models.PayloadSchemaType | models.TextIndexParams | models.KeywordIndexParams:
    """Return how an index of a kind is created. Without phrases, an index of words finds no phrase at all."""
    if kind == "tenant":
        return models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
    if kind == "text":
        return models.TextIndexParams(type=models.TextIndexType.TEXT, phrase_matching=True)
    return models.PayloadSchemaType(kind)


def layout_of(info: models.CollectionInfo) -> dict[str, Any]:
    """Return the fields of a layout that a collection was created with, or has been changed to; see `ENGINE_FIELDS`."""
    params, hnsw = info.config.params, info.config.hnsw_config
    vectors = params.vectors
    first = next(iter(vectors.values()), None) if isinstance(vectors, dict) else vectors
    indexes = {field: _kind_of(index) for field, index in sorted(info.payload_schema.items())}
    known = {
        "payload_indexes": indexes,
        "m": hnsw.m,
        "ef_construct": hnsw.ef_construct,
        "hnsw_on_disk": hnsw.on_disk,
        "indexing_threshold": info.config.optimizer_config.indexing_threshold,
        "datatype": DATATYPES.get(first.datatype if first else None, "float32"),
        "vectors_on_disk": first.on_disk if first else None,
        "payload_on_disk": params.on_disk_payload,
        "shards": params.shard_number,
        "replication_factor": params.replication_factor,
        "write_consistency_factor": params.write_consistency_factor,
    }
    return {name: value for name, value in known.items() if value is not None} | _quantized(info)


def _kind_of(index: models.PayloadIndexInfo) -> str:
    return "tenant" if getattr(index.params, "is_tenant", None) else index.data_type.value


def makes_own_words(index: models.PayloadIndexInfo) -> bool:
    """Say whether an index of kind text makes the words that one of modalign's makes, and keeps their order.

    One that somebody else created may fold, stem or cut words, and then the same filter finds other points.
    """
    params = index.params
    if not isinstance(params, models.TextIndexParams):
        return False
    changes = (params.min_token_len, params.max_token_len, params.ascii_folding, params.stopwords, params.stemmer)
    plain = params.tokenizer is models.TokenizerType.WORD and params.lowercase is not False
    return plain and params.phrase_matching is True and not any(changes)


def _quantized(info: models.CollectionInfo) -> dict[str, str | None]:
    """Name a quantization as layouts do: its configuration has one field, of that name, which says how strong it is."""
    config = info.config.quantization_config
    if config is None:
        return {"quantization": None, "compression": None}
    name = next(iter(type(config).model_fields))
    strength = {"binary": "encoding", "product": "compression", "turbo": "bits"}.get(name, "")
    compression = getattr(getattr(config, name), strength, None)
    return {"quantization": name, "compression": None if compression is None else compression.value}


def quantization_config(layout: Layout) -> models.QuantizationConfig | None:
    """Return the configuration of a layout's quantization; None: it has none."""
    if layout.quantization is None:
        return None
    if layout.quantization == "scalar":
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        return models.ScalarQuantization(scalar=scalar)
    compression = layout.compression or COMPRESSIONS[layout.quantization][0]
    if layout.quantization == "binary":
        encoding = models.BinaryQuantizationEncoding(compression)
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True, encoding=encoding))
    if layout.quantization == "product":
        ratio = models.CompressionRatio(compression)
        return models.ProductQuantization(product=models.ProductQuantizationConfig(always_ram=True, compression=ratio))
    bits = models.TurboQuantBitSize(compression)
    return models.TurboQuantization(turbo=models.TurboQuantQuantizationConfig(always_ram=True, bits=bits))
