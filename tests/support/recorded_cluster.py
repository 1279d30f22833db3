"""A node of a cluster of three, as it answered: Qdrant 1.18.3, a collection of two shards and three replicas of each.

`recorded_cluster.json` holds its answers in three states: another node is away after a write that it missed; that node
is back, and was never sent the write again; two nodes are away.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from werkzeug import Request, Response

from tests.support.canned_server import result, serving, version

STATES = ("a node is away", "replicas differ", "no majority")
# What every node answers, whatever the others do.
SIMPLE = {
    "GET /": version("1.18.3"),
    "GET /aliases": result({"aliases": []}),
    "GET /collections": result({"collections": [{"name": "c"}]}),
}


@cache
def recorded() -> dict[str, dict[str, tuple[int, Any]]]:
    answers: dict[str, dict[str, tuple[int, Any]]] = json.loads(Path(__file__).with_suffix(".json").read_text())
    return answers


class RecordedNode:
    """Answers as the node did in `state`; without a recorded answer, 404.

    Attributes:
        requests: what it was asked: method, path, and the query where that says which replicas are asked.
        full: its disk is full, which is no failure of a cluster.
        waits: for a majority, as long as a request for a change says.
        tells_of_others: as a server since 1.17 does, to whoever may see the cluster.
    """

    def __init__(self, state: str):
        self.state = state
        self.requests: list[str] = []
        self.url = ""
        self.full = False
        self.waits = False
        self.tells_of_others = True

    def respond(self, request: Request) -> Response:
        query = request.query_string.decode()
        asked = f"{request.method} {request.path}"
        if (request.method == "POST" and "consistency" in query) or "telemetry" in request.path:
            asked += f"?{query}"
        self.requests.append(asked)
        if self.full:
            return Response('{"status":{"error":"Service internal error: No space left on device"}}', 500)
        if "telemetry" in asked and not self.tells_of_others:
            return Response("", 404)
        if self.waits and asked == "POST /collections/aliases":
            time.sleep(float(request.args.get("timeout", 10)))
        if asked in SIMPLE:
            return Response(SIMPLE[asked])
        status, body = recorded()[self.state].get(asked, (404, {}))
        return Response(json.dumps(body), status)


@contextmanager
def recorded_node(state: str) -> Iterator[RecordedNode]:
    """Serve the recorded answers of `state`."""
    node = RecordedNode(state)
    with serving(node.respond) as http:
        node.url = http.url_for("").rstrip("/")
        yield node
