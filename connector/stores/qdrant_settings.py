"""The settings of a collection on a server: how it is created, what differs since, and how that is restored."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from qdrant_client import models

from connector.stores.collection import CollectionConfig, SettingDifference
from connector.stores.layout import PayloadKind
from connector.stores.qdrant_layout import index_schema, quantization_config

# What a server cannot change in a collection that exists.
FIXED = ("size", "distance", "datatype", "shard_number")
# What a server fills in beside the parameters of an index that it was given.
INDEX_DEFAULTS: Mapping[str, Any] = {"tokenizer": "word", "lowercase": True, "lookup": True, "range": True}


def creation(config: CollectionConfig) -> dict[str, Any]:
    """Return the options of the request that creates a collection."""
    return {
        "vectors_config": {
            vector_name: models.VectorParams(
                size=vector.dim,
                distance=models.Distance(vector.distance.value),
                datatype=models.Datatype(config.datatype),
                on_disk=config.vectors_on_disk,
            )
            for vector_name, vector in config.vectors.items()
        },
        "hnsw_config": models.HnswConfigDiff(
            m=config.m,
            ef_construct=config.ef_construct,
            full_scan_threshold=max(10, config.indexing_threshold),
            on_disk=config.hnsw_on_disk,
        ),
        "optimizers_config": models.OptimizersConfigDiff(indexing_threshold=config.indexing_threshold),
        "quantization_config": quantization_config(config),
        "on_disk_payload": config.payload_on_disk,
        "shard_number": config.shards,
        "replication_factor": config.replication_factor,
        "write_consistency_factor": config.write_consistency_factor,
        "metadata": dict(config.metadata),
    }


def restoration(info: models.CollectionInfo, config: CollectionConfig) -> dict[str, Any]:
    """Return the options of the request that gives a collection its settings again, as far as a server can.

    Vectors may have settings of their own, which come before those of the collection.
    """
    created, vectors = creation(config), _plain(info.config)["params"]["vectors"]
    quantization = created["quantization_config"] or models.Disabled.DISABLED
    return {
        "vectors_config": {
            name: models.VectorParamsDiff(
                on_disk=config.vectors_on_disk,
                hnsw_config=created["hnsw_config"] if "hnsw_config" in vectors[name] else None,
                quantization_config=quantization if "quantization_config" in vectors[name] else None,
            )
            for name in config.vectors
            if name in vectors
        },
        "hnsw_config": created["hnsw_config"],
        "optimizers_config": created["optimizers_config"],
        "quantization_config": quantization,
        "collection_params": models.CollectionParamsDiff(
            on_disk_payload=config.payload_on_disk,
            replication_factor=config.replication_factor,
            write_consistency_factor=config.write_consistency_factor,
        ),
        "metadata": created["metadata"],
    }


def differences(info: models.CollectionInfo, config: CollectionConfig) -> Iterator[SettingDifference]:
    """Yield the settings of a collection that are not those of the request that creates it with `config`."""
    created = {name: _plain(value) for name, value in creation(config).items() if value is not None}
    present = _plain(info.config)
    params, metadata = present["params"], present.get("metadata", {})
    expected_quantization = created.get("quantization_config")
    for name, expected in created["vectors_config"].items():
        vector = params["vectors"].get(name)
        if vector is None:
            yield SettingDifference(f"vectors.{name}", expected, None, restorable=False)
            continue
        yield from _different(f"vectors.{name}.", expected, vector)
        own_hnsw = {key: value for key, value in created["hnsw_config"].items() if key in vector.get("hnsw_config", {})}
        yield from _different(f"vectors.{name}.hnsw_config.", own_hnsw, vector.get("hnsw_config", {}))
        if "quantization_config" in vector and not _contains(vector["quantization_config"], expected_quantization):
            place = f"vectors.{name}.quantization_config"
            yield SettingDifference(place, expected_quantization, vector["quantization_config"])
    yield from _different("hnsw_config.", created["hnsw_config"], present["hnsw_config"])
    yield from _different("optimizer_config.", created["optimizers_config"], present["optimizer_config"])
    if not _contains(present.get("quantization_config"), expected_quantization):
        yield SettingDifference("quantization_config", expected_quantization, present.get("quantization_config"))
    of_params = ("on_disk_payload", "shard_number", "replication_factor", "write_consistency_factor")
    yield from _different("", {name: created[name] for name in of_params if name in created}, params)
    # An older modalign wrote less of it.
    yield from _different("metadata.", {k: v for k, v in created["metadata"].items() if k in metadata}, metadata)
    yield from _index_differences(info, config.payload_indexes)


def _different(place: str, expected: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[SettingDifference]:
    for name, value in expected.items():
        found = present.get(name)
        if found != value and not (found is None and value is False):  # which a server may leave out
            yield SettingDifference(place + name, value, found, restorable=name not in FIXED)


def _index_differences(info: models.CollectionInfo, indexes: Mapping[str, PayloadKind]) -> Iterator[SettingDifference]:
    for field in sorted(info.payload_schema.keys() | indexes.keys()):
        index = info.payload_schema.get(field)
        present = None if index is None else _index_in_words(index)
        expected = _kind_in_words(indexes[field]) if field in indexes else None
        if present != expected:
            yield SettingDifference(f"payload index {field}", expected, present, restorable=expected is not None)


def _index_in_words(index: models.PayloadIndexInfo) -> str:
    """Name the kind of an index, and its parameters that are not those of every index."""
    params = _plain(index.params) if index.params is not None else {}
    return _with_parameters(index.data_type.value, params)


def _kind_in_words(kind: PayloadKind) -> str:
    schema = index_schema(kind)
    return _with_parameters(kind, _plain(schema) if isinstance(schema, BaseModel) else {})


def _with_parameters(kind: str, params: Mapping[str, Any]) -> str:
    told = sorted(
        f"{name}={value}"
        for name, value in params.items()
        if name != "type" and value != INDEX_DEFAULTS.get(name, False)
    )
    return f"{kind} ({', '.join(told)})" if told else kind


def _contains(present: Any, expected: Any) -> bool:
    """Say whether everything that is expected is there; a server may tell more of it."""
    if isinstance(expected, dict) and isinstance(present, dict):
        return all(_contains(present.get(name), value) for name, value in expected.items())
    return bool(present == expected)


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it, without what is not set."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value
