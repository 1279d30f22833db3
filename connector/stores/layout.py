"""Layouts: what a user chooses about a collection when it is created, by flags or in a TOML file."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Interval

from alignment.bounds import bounds_of, out_of_bounds
from connector.errors import SettingsError
from connector.stores.payload_paths import canonical_path, parse_path

PayloadKind = Literal["keyword", "tenant", "integer", "float", "bool", "datetime", "uuid", "geo", "text"]
Quantization = Literal["scalar", "binary", "product", "turbo"]
Datatype = Literal["float32", "float16", "uint8"]

PAYLOAD_KINDS: tuple[PayloadKind, ...] = get_args(PayloadKind)
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
DATATYPES: tuple[Datatype, ...] = get_args(Datatype)
# How strongly each quantization can compress; the first is what it does unless told otherwise.
COMPRESSIONS: Mapping[Quantization, tuple[str, ...]] = {
    "scalar": (),  # a byte for each float32, always
    "binary": ("one_bit", "one_and_half_bits", "two_bits"),
    "product": ("x16", "x4", "x8", "x32", "x64"),
    "turbo": ("bits4", "bits1", "bits1_5", "bits2", "bits8"),
}
# Qdrant's own default, in kB of vectors: below, brute force is as fast as a graph.
INDEXING_THRESHOLD = 10_000
# Payload fields that modalign writes itself, all of them texts.
OWN_FIELDS = frozenset(("key", "group", "modality", "content_sha256", "split", "aligned"))
# How many times k a search takes from quantized vectors, to rescore them with the vectors themselves.
OVERSAMPLING = 4.0


def value_kind(kind: PayloadKind) -> PayloadKind:
    """Return the kind of the values in an index: a tenant's index is one of keywords, stored tenant by tenant."""
    return "keyword" if kind == "tenant" else kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a collection stores, indexes and distributes its points. Every field can be a key of a TOML file.

    Attributes:
        payload_indexes: kinds of values by the path of the field, see `connector.stores.payload_paths`. Values of
            another kind are refused.
        m, ef_construct: of the HNSW graph: links of a node, and how many candidates compete for them.
        indexing_threshold: kB of vectors in a segment from which a graph is built and used; below, search is
            exact brute force.
        quantization: keep a compressed copy of the vectors in memory and search these.
        compression: how strongly; one of `COMPRESSIONS`. None: the first of them.
        oversampling: how many times k a search takes from quantized vectors before it rescores.
        rescore: choose the best of these by the vectors themselves; without it the quantized ones choose. Scores are
            of the vectors in both cases.
        datatype: of the stored vectors. Values that it cannot hold are refused, never clamped.
        vectors_on_disk, hnsw_on_disk, payload_on_disk: read from disk when needed instead of kept in memory.
        shards: into how many the collection is cut; None: as many as the server thinks right.
        replication_factor: on how many nodes of a cluster each shard stands.
        write_consistency_factor: how many replicas must confirm a write.
        caption_payload: images carry the first caption of their item as payload `caption`.

    Raises:
        SettingsError: a setting is invalid, alone or beside another.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid"}

    # Beyond these bounds engines fail at best, and take all memory at worst.
    payload_indexes: Mapping[str, PayloadKind] = field(default_factory=dict)
    m: Annotated[int, Interval(ge=2, le=1024)] = 16
    ef_construct: Annotated[int, Interval(ge=4, le=100_000)] = 100
    indexing_threshold: Annotated[int, Interval(ge=1, le=2**31 - 1)] = INDEXING_THRESHOLD
    quantization: Quantization | None = None
    compression: str | None = None
    oversampling: Annotated[float, Interval(ge=1, le=1000)] = OVERSAMPLING
    rescore: bool = True
    datatype: Datatype = "float32"
    vectors_on_disk: bool = False
    hnsw_on_disk: bool = False
    payload_on_disk: bool = True
    shards: Annotated[int, Interval(ge=1, le=10_000)] | None = None
    replication_factor: Annotated[int, Interval(ge=1, le=1000)] = 1
    write_consistency_factor: Annotated[int, Interval(ge=1, le=1000)] = 1
    caption_payload: bool = True

    def __post_init__(self) -> None:
        for wrong in out_of_bounds(self):
            raise SettingsError(wrong)
        _check_payload_indexes(self.payload_indexes)
        if self.compression is not None:
            possible = COMPRESSIONS[self.quantization] if self.quantization else ()
            if self.compression not in possible:
                raise SettingsError(
                    f"compression: expected {' or '.join(possible) or 'none'} with quantization {self.quantization}, "
                    f"got {self.compression}"
                )
        if self.write_consistency_factor > self.replication_factor:
            raise SettingsError(
                f"write_consistency_factor: expected at most the replication_factor, {self.replication_factor}, got "
                f"{self.write_consistency_factor}; no write could ever be confirmed"
            )


def _check_payload_indexes(indexes: Mapping[str, PayloadKind]) -> None:
    kinds: dict[str, PayloadKind] = {}
    for name, kind in indexes.items():
        try:
            path = canonical_path(name)
        except ValueError as error:
            raise SettingsError(f"payload_indexes: {error}") from None
        if kinds.setdefault(path, kind) != kind:
            raise SettingsError(f"payload_indexes: expected one kind for field {path}, got {kinds[path]} and {kind}")
        if parse_path(name)[0] in OWN_FIELDS and value_kind(kind) != "keyword":
            raise SettingsError(
                f"payload_indexes: field {path} is written by modalign and holds texts; expected keyword, got {kind}"
            )


FIELDS = tuple(field.name for field in fields(Layout))
# What an engine keeps; how searches use quantized vectors is told with every search, and payloads are as pushed.
SEARCH_FIELDS = ("oversampling", "rescore")
# What a later push may change in a collection that exists, because it writes the payloads again.
CHANGEABLE_FIELDS = ("caption_payload",)
ENGINE_FIELDS = tuple(name for name in FIELDS if name not in (*SEARCH_FIELDS, *CHANGEABLE_FIELDS))
BOUNDS = bounds_of(Layout)
USUAL: Mapping[str, Any] = {name: getattr(Layout(), name) for name in FIELDS}


def checked_layout(options: Mapping[str, Any], source: str = "layout") -> dict[str, Any]:
    """Return those of `options` that are given, that is not None, once they make a layout.

    Paths of payload fields are returned as Qdrant prints them.

    Raises:
        SettingsError: an unknown name, a value of another type, or an invalid layout.

    >>> checked_layout({"m": 32, "quantization": None})
    {'m': 32}
    """
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - set(FIELDS)):
        raise SettingsError(f"{source}: unknown setting {', '.join(unknown)}; known are {', '.join(FIELDS)}")
    if all(_is_usual(name, value) for name, value in given.items()):
        return given
    from pydantic import TypeAdapter, ValidationError  # takes a while, and most releases have the usual settings

    try:
        # As JSON, of which a strict reader makes a dataclass; what JSON has no word for is then a text too many.
        TypeAdapter(Layout).validate_json(json.dumps(given, default=str))
    except ValidationError as error:
        raise SettingsError(f"{source}: {'; '.join(map(_sentence, error.errors()))}") from None
    if "payload_indexes" in given:
        given["payload_indexes"] = {canonical_path(name): kind for name, kind in given["payload_indexes"].items()}
    return given


def _is_usual(name: str, value: Any) -> bool:
    """Whether a setting is what it is where nobody chooses: valid, whatever the others are."""
    if name == "payload_indexes":
        return type(value) is dict and all(field in OWN_FIELDS and kind == "keyword" for field, kind in value.items())
    return type(value) is type(USUAL[name]) and bool(value == USUAL[name])


def _sentence(error: Any) -> str:
    """Put an error of pydantic into words: the place, what was expected, what was given."""
    place = ".".join(map(str, error["loc"]))
    if error["type"] in ("greater_than_equal", "less_than_equal"):
        least, most = BOUNDS[place]
        return f"{place}: expected {least} to {most}, got {error['input']}"
    return (f"{place}: " if place else "") + str(error["msg"]).removeprefix("Value error, ")


def read_layout(path: Path) -> dict[str, Any]:
    """Read what a TOML file says of a layout: its keys are the fields of `Layout`.

    Raises:
        SettingsError: the file cannot be read, is no TOML, or says what no layout has.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also a number of 5000 digits
        raise SettingsError(f"{path} cannot be read as TOML: {error}") from error
    return checked_layout(raw, str(path))
