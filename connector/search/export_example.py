"""Ask Qdrant with raw text embeddings: python example.py TEXTS.npy QDRANT-URL [COLLECTION]; key in QDRANT_API_KEY."""

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime


def main() -> None:
    """Print what is found for each row, best first: its id, its score, what is taken off to rank it, and its payload.

    `request.json` says what a score means.
    """
    spec = json.loads(Path(__file__).with_name("request.json").read_text(encoding="utf-8"))
    request = spec["requests"]["text-to-image"]
    if len(sys.argv) != 3 + ("{collection}" in request["path"]):  # exported without --collection it has to be named
        sys.exit(__doc__)
    url = sys.argv[2].rstrip("/") + request["path"].format(collection=sys.argv[-1])
    headers = {"Content-Type": "application/json", "api-key": os.environ.get("QDRANT_API_KEY", "")}
    graph = onnxruntime.InferenceSession(Path(__file__).with_name(request["graph"]))
    names = [output.name for output in graph.get_outputs()]
    outputs = dict(zip(names, graph.run(names, {"embedding": np.load(sys.argv[1]).astype(np.float32)}), strict=True))
    for row, vector in enumerate(outputs["vector"]):
        if np.isnan(vector).any():
            print(row, "has no direction to search in")
            continue
        offset = outputs["offset"][row] if spec["score"]["offset"] else 0.0
        body = json.dumps({**request["body"], "query": vector.tolist()}).encode()
        with urlopen(Request(url, body, headers, method=request["method"])) as answer:
            for hit in json.load(answer)["result"]["points"]:
                payload = {name: value for name, value in hit["payload"].items() if name != "aligned"}
                ranked_by = spec["score"]["sign"] * hit["score"] + offset
                taken = taken_off(spec, "image", ranked_by, payload)
                print(row, hit["id"], ranked_by + taken, taken, json.dumps(payload))


def taken_off(spec: dict[str, Any], items: str, ranked_by: float, payload: dict[str, Any]) -> float:
    """Return what ranks an item lower because the alignment's fit saw it."""
    seen = spec["seen_offset"]
    if seen is None or spec["rescoring"] is not None or payload.get(seen["field"]) != seen["value"]:
        return 0.0
    offset = float(seen["offset"][items])
    own = -(max(0.0, ranked_by**2 - offset) ** 0.5)
    return own - ranked_by if seen["squared"] else offset


if __name__ == "__main__":
    main()
