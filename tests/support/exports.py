"""Exported directories as a service uses them: graphs, requests to the engine, and the example as it stands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession
from qdrant_client import models

from tests.support.world import World


def spec_of(path: Path) -> Any:
    return json.loads((path / "request.json").read_text(encoding="utf-8"))


def run(path: Path, X: npt.NDArray[np.floating], **inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
    """Run a graph on embeddings (n, d) and further inputs; return its outputs by name."""
    session = InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    given = {name: values.astype(np.float32) for name, values in {"embedding": X, **inputs}.items()}
    return dict(zip(names, session.run(names, given), strict=True))


def answered(world: World, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """What a server answers to a request: the engine's own hits."""
    request = models.QueryRequest.model_validate(body)  # as strict as the client
    assert request.params is not None
    match = re.fullmatch(r"/collections/([^/]+)/points/query", path)
    assert match
    (hits,) = world.store.search(
        match[1],
        str(request.using),
        np.array([body["query"]], np.float32),
        int(request.limit or 0),
        exact=bool(request.params.exact),
        ef=request.params.hnsw_ef,
    )
    return [{"id": hit.id, "version": 1, "score": hit.raw_score, "payload": hit.payload} for hit in hits]


def example(exported: Path, *arguments: object, key: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"QDRANT_API_KEY": key} if key else {})}
    return subprocess.run(
        [sys.executable, exported / "example.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
