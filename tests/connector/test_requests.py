"""Requests: SQL records them, and a retry rebuilds them, also from what an older version recorded."""

import json
from dataclasses import MISSING, FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from connector import requests
from connector.errors import SettingsError
from connector.recorded_request import Request
from connector.requests import RETRIED, EncodeRequest, IngestRequest, PushRequest
from tests.support.errors import raises

# What SQL holds of a run of each command that can be tried again, as the version before requests recorded it.
RECORDED: dict[str, dict[str, Any]] = {
    "encode": {
        "corpus": "/c/m.jsonl",
        "format": None,
        "images": "/c/images",
        "set": "s",
        "encoders": {"image": "fake:a"},
        "dtype": "float16",
    },
    "push": {"set": "s", "into": "c", "alignment": "a", "metrics": ["dot"], "layout": {"m": 8}},
    "ingest": {
        "corpus": "/c/m.jsonl",
        "format": "jsonl",
        "images": None,
        "set": "s",
        "into": "c",
        "alignment": "a",
        "metrics": [],
        "layout": {"payload_indexes": {"year": "integer"}},
    },
}


@pytest.mark.parametrize("command", RETRIED)
def test_a_request_is_rebuilt_from_what_an_older_version_recorded(command: str) -> None:
    rebuilt = RETRIED[command].from_parameters(RECORDED[command])
    written = json.loads(json.dumps(rebuilt.parameters, default=str))
    assert {name: written[name] for name in RECORDED[command]} == RECORDED[command]
    assert RETRIED[command].from_parameters(written) == rebuilt


@pytest.mark.parametrize("command", RETRIED)
def test_what_was_not_recorded_is_named(command: str) -> None:
    lacking = {name: value for name, value in RECORDED[command].items() if name != "alignment" and name != "encoders"}
    missing = "encoders" if command == "encode" else "alignment"
    with raises(SettingsError, missing, f"modalign {command}"):
        RETRIED[command].from_parameters(lacking)


def test_names_that_are_no_longer_fields_are_ignored() -> None:
    rebuilt = PushRequest.from_parameters({**RECORDED["push"], "speed": 3})
    assert rebuilt == PushRequest(set="s", into="c", alignment="a", metrics=["dot"], layout={"m": 8})
    in_parts = {**RECORDED["ingest"], "parts": 3}  # as an earlier version recorded it
    assert IngestRequest.from_parameters(in_parts) == IngestRequest.from_parameters(RECORDED["ingest"])


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    request = EncodeRequest(corpus=Path("m.jsonl"), set="s", encoders={"text": "fake:a"}, images=Path("i"))
    assert (request.corpus, request.images) == (tmp_path / "m.jsonl", tmp_path / "i")


def test_an_ingest_keeps_a_set_named_like_its_collection() -> None:
    assert IngestRequest(corpus=Path("/m"), into="c", alignment="a").parameters["set"] == "c"
    assert IngestRequest(corpus=Path("/m"), into="c", alignment="a", set="s").set_name == "s"


KINDS = [kind for kind in vars(requests).values() if isinstance(kind, type) and issubclass(kind, Request)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if hasattr(kind, "command")], ids=lambda kind: kind.command)
def test_a_request_is_a_value_whose_fields_are_what_is_recorded(kind: type[Request]) -> None:
    values: dict[str, Any] = {"encoders": {"text": "fake:a"}, "sets": ["s"], "releases": ["r"]}
    required = [e.name for e in fields(kind) if e.default is MISSING and e.default_factory is MISSING]
    request = kind(**{name: values.get(name, "x") for name in required})
    assert list(request.parameters) == [entry.name for entry in fields(kind)]
    assert kind.from_parameters(request.parameters) == request
    with pytest.raises(FrozenInstanceError):
        setattr(request, fields(kind)[0].name, "y")
