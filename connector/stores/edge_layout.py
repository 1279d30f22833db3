"""A collection's layout in the classes of Qdrant Edge."""

from collections.abc import Iterator
from typing import Any

import qdrant_edge as edge

from connector.stores.collection import CollectionConfig, SettingDifference
from connector.stores.layout import COMPRESSIONS, ENGINE_FIELDS, Layout, PayloadKind

# The engine's names of what layouts call `compression` and `datatype`.
_COMPRESSION: dict[str, Any] = {
    "one_bit": edge.BinaryQuantizationEncoding.OneBit,
    "one_and_half_bits": edge.BinaryQuantizationEncoding.OneAndHalfBits,
    "two_bits": edge.BinaryQuantizationEncoding.TwoBits,
    "x4": edge.CompressionRatio.X4,
    "x8": edge.CompressionRatio.X8,
    "x16": edge.CompressionRatio.X16,
    "x32": edge.CompressionRatio.X32,
    "x64": edge.CompressionRatio.X64,
    "bits1": edge.TurboQuantBitSize.Bits1,
    "bits1_5": edge.TurboQuantBitSize.Bits1_5,
    "bits2": edge.TurboQuantBitSize.Bits2,
    "bits4": edge.TurboQuantBitSize.Bits4,
    "bits8": edge.TurboQuantBitSize.Bits8,
}
_DATATYPE = {
    "float32": edge.VectorStorageDatatype.Float32,
    "float16": edge.VectorStorageDatatype.Float16,
    "uint8": edge.VectorStorageDatatype.Uint8,
}
_SCHEMA: dict[PayloadKind, Any] = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool,
    "datetime": edge.PayloadSchemaType.Datetime,
    "uuid": edge.PayloadSchemaType.Uuid,
    "geo": edge.PayloadSchemaType.Geo,
    "text": edge.PayloadSchemaType.Text,
}
# How an index of a kind is created. Without phrases, an index of words finds no phrase at all.
INDEX: dict[PayloadKind, Any] = {
    **_SCHEMA,
    "tenant": edge.KeywordIndexParams(is_tenant=True),
    "text": edge.TextIndexParams(phrase_matching=True),
}
_KINDS: dict[Any, PayloadKind] = {schema: kind for kind, schema in _SCHEMA.items()}


def kind_of(index: Any) -> PayloadKind:
    """Return the kind of an index that the engine tells of."""
    return "tenant" if getattr(index.params, "is_tenant", None) else _KINDS[index.data_type]


def edge_config(config: CollectionConfig) -> edge.EdgeConfig:
    """Return the configuration of a new shard."""
    memory = {True: edge.Memory.Cold, False: edge.Memory.Cached}
    return edge.EdgeConfig(
        vectors={
            name: edge.EdgeVectorParams(
                size=vector.dim,
                distance=getattr(edge.Distance, vector.distance.value),
                datatype=_DATATYPE[config.datatype],
                memory=memory[config.vectors_on_disk],
            )
            for name, vector in config.vectors.items()
        },
        hnsw_config=edge.HnswIndexConfig(
            m=config.m,
            ef_construct=config.ef_construct,
            full_scan_threshold=config.indexing_threshold,
            memory=memory[config.hnsw_on_disk],
        ),
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=config.indexing_threshold),
        quantization_config=_quantization(config),
        payload_memory=memory[config.payload_on_disk],
    )


def differences(present: CollectionConfig, expected: CollectionConfig) -> Iterator[SettingDifference]:
    """Yield the settings that differ between two configurations; payload indexes are the engine's own."""
    for name in sorted(present.vectors.keys() | expected.vectors.keys()):
        if (now := present.vectors.get(name)) != (then := expected.vectors.get(name)):
            yield SettingDifference(f"vectors.{name}", then, now, restorable=False)
    for name in ENGINE_FIELDS:
        now, then = _setting(present, name), _setting(expected, name)
        if name != "payload_indexes" and then is not None and now != then:
            yield SettingDifference(name, then, now, restorable=name != "datatype")
    if expected.quantization is None and present.quantization is not None:
        yield SettingDifference("quantization", None, present.quantization)
    for name, then in expected.metadata.items():
        if name in present.metadata and present.metadata[name] != then:  # an older modalign wrote less of it
            yield SettingDifference(f"metadata.{name}", then, present.metadata[name])


def _setting(layout: Layout, name: str) -> Any:
    if name == "compression" and layout.quantization is not None:
        return layout.compression or next(iter(COMPRESSIONS[layout.quantization]), None)
    return getattr(layout, name)


def _quantization(layout: Layout) -> Any:
    if layout.quantization is None:
        return None
    if layout.quantization == "scalar":
        return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, always_ram=True)
    compression = _COMPRESSION[layout.compression or COMPRESSIONS[layout.quantization][0]]
    if layout.quantization == "binary":
        return edge.BinaryQuantizationConfig(always_ram=True, encoding=compression)
    if layout.quantization == "product":
        return edge.ProductQuantizationConfig(compression, always_ram=True)
    return edge.TurboQuantQuantizationConfig(always_ram=True, bits=compression)
