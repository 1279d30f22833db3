"""What a real server tells of a collection is compared with how it was created: answers as Qdrant 1.18.3 gave them."""

import json
from typing import Any

import pytest
from qdrant_client import models

from alignment.metrics import Distance
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.qdrant_settings import differences, restoration

CREATED = CollectionConfig(
    vectors=dict.fromkeys(("image", "text"), VectorConfig(6, Distance.COSINE)),
    payload_indexes={"number": "integer", "words": "text", "key": "keyword"},
    quantization="scalar",
    metadata={"modalign": {"metric": "cosine"}, "modalign_search": {"oversampling": 4.0, "rescore": True}},
)
VECTOR = """{"size": 6, "distance": "Cosine", "on_disk": false, "datatype": "float32"}"""
ANSWER = f"""{{
  "status": "green", "optimizer_status": "ok", "indexed_vectors_count": 0, "points_count": 12, "segments_count": 2,
  "config": {{
    "params": {{
      "vectors": {{"image": {VECTOR}, "text": {VECTOR}}},
      "shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": true
    }},
    "hnsw_config": {{
      "m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0, "on_disk": false
    }},
    "optimizer_config": {{
      "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0,
      "max_segment_size": null, "memmap_threshold": null, "indexing_threshold": 10000, "flush_interval_sec": 5,
      "max_optimization_threads": null
    }},
    "wal_config": {{"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1}},
    "quantization_config": {{"scalar": {{"type": "int8", "always_ram": true}}}},
    "metadata": {{"modalign": {{"metric": "cosine"}}, "modalign_search": {{"oversampling": 4.0, "rescore": true}}}}
  }},
  "payload_schema": {{
    "number": {{"data_type": "integer", "points": 12}},
    "words": {{
      "data_type": "text", "points": 0, "params": {{"type": "text", "tokenizer": "word", "phrase_matching": true}}
    }},
    "key": {{"data_type": "keyword", "points": 12}}
  }}
}}"""


def told(*path: str, value: Any = None) -> models.CollectionInfo:
    """The answer, with another value in one place."""
    answer: dict[str, Any] = json.loads(ANSWER)
    place = answer
    for name in path[:-1]:
        place = place.setdefault(name, {})
    if path:
        place[path[-1]] = value
    return models.CollectionInfo(**answer)


def test_a_collection_as_it_was_created_differs_in_nothing() -> None:
    assert list(differences(told(), CREATED)) == []


@pytest.mark.parametrize(
    ("path", "value", "setting"),
    [
        (("config", "hnsw_config", "m"), 4, "hnsw_config.m"),
        (("config", "hnsw_config", "full_scan_threshold"), 10**9, "hnsw_config.full_scan_threshold"),
        (("config", "hnsw_config", "on_disk"), True, "hnsw_config.on_disk"),
        (("config", "params", "vectors", "text", "hnsw_config"), {"m": 0}, "vectors.text.hnsw_config.m"),
        (("config", "params", "vectors", "image", "on_disk"), True, "vectors.image.on_disk"),
        (
            ("config", "params", "vectors", "image", "quantization_config"),
            {"product": {"compression": "x64"}},
            "vectors.image.quantization_config",
        ),
        (("config", "quantization_config"), None, "quantization_config"),
        (("config", "quantization_config", "scalar", "always_ram"), False, "quantization_config"),
        (("config", "optimizer_config", "indexing_threshold"), 0, "optimizer_config.indexing_threshold"),
        (("config", "params", "replication_factor"), 3, "replication_factor"),
        (("config", "params", "write_consistency_factor"), 2, "write_consistency_factor"),
        (("config", "params", "on_disk_payload"), False, "on_disk_payload"),
        (("config", "metadata", "modalign_search"), {"rescore": False}, "metadata.modalign_search"),
        (("payload_schema", "number"), {"data_type": "float", "points": 12}, "payload index number"),
        (
            ("payload_schema", "words", "params"),
            {"type": "text", "tokenizer": "prefix", "phrase_matching": True},
            "payload index words",
        ),
        (
            ("payload_schema", "key", "params"),
            {"type": "keyword", "is_tenant": True},
            "payload index key",
        ),
    ],
)
def test_what_something_else_changed_is_named_and_can_be_restored(
    path: tuple[str, ...], value: Any, setting: str
) -> None:
    info = told(*path, value=value)
    (difference,) = differences(info, CREATED)
    assert (difference.setting, difference.restorable) == (setting, True)
    assert restoration(info, CREATED)["hnsw_config"].m == 16


@pytest.mark.parametrize(
    ("path", "value", "setting"),
    [
        (("config", "params", "vectors", "image", "datatype"), "float16", "vectors.image.datatype"),
        (("config", "params", "vectors", "image", "size"), 7, "vectors.image.size"),
        (("config", "params", "vectors", "text", "distance"), "Dot", "vectors.text.distance"),
        (("config", "params", "vectors"), {"image": json.loads(VECTOR)}, "vectors.text"),
        (("payload_schema", "more"), {"data_type": "uuid", "points": 12}, "payload index more"),
    ],
)
def test_what_a_server_cannot_change_back_is_named_as_such(path: tuple[str, ...], value: Any, setting: str) -> None:
    (difference,) = differences(told(*path, value=value), CREATED)
    assert (difference.setting, difference.restorable) == (setting, False)


def test_what_the_layout_leaves_open_is_not_compared() -> None:
    assert list(differences(told("config", "params", "shard_number", value=6), CREATED)) == []


def test_a_collection_of_an_older_modalign_has_no_search_settings_in_its_metadata() -> None:
    assert list(differences(told("config", "metadata", value={"modalign": {"metric": "cosine"}}), CREATED)) == []
