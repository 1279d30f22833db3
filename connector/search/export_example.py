"""Ask Qdrant with raw text embeddings: python example.py TEXTS.npy QDRANT-URL [COLLECTION]; key in QDRANT_API_KEY."""

import json
import os
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime


def main() -> None:
    """Print id, score and payload of what is found for each row; `request.json` says what a score means."""
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
                print(row, hit["id"], spec["score"]["sign"] * hit["score"] + offset, json.dumps(payload))


if __name__ == "__main__":
    main()
