"""The imitation of a Qdrant server, with rights: it takes tokens as a real one does, and refuses in its words."""

import base64
import json
import re
from typing import Any

from typing_extensions import override

from tests.support.faulty_server import COLLECTION, FaultyServer, RefusedError, Request

GLOBAL = re.compile(r"/collections/aliases")
CHANGES_POINTS = re.compile(rf"{COLLECTION}/points(/delete)?")
LISTS = re.compile(r"/|/collections|/aliases")


class GuardedServer(FaultyServer):
    """A server that looks at the `access` of a token; it does not look at the signature. Its `key` may do all."""

    @override
    def admits(self, request: Request) -> bool:
        return request.key == self.key or (request.key or "").count(".") == 2

    @override
    def carry_out(self, request: Request, *, half: bool = False) -> Any:
        access = "m" if request.key == self.key else access_of(request.key or "")
        if LISTS.fullmatch(request.path):
            return shown(super().carry_out(request, half=half), access)
        self.check(request, access)
        return super().carry_out(request, half=half)

    def check(self, request: Request, access: Any) -> None:
        """Raise what the server answers where the access is not enough."""
        match = re.match(COLLECTION, request.path)
        name = match[1] if match else ""
        of_collections = GLOBAL.fullmatch(request.path) or (
            re.fullmatch(COLLECTION, request.path) and request.method != "GET"
        )
        indexes = request.path.endswith("/index")
        writes = indexes or (CHANGES_POINTS.fullmatch(request.path) and is_write(request))
        if isinstance(access, str):
            if access != "m" and (of_collections or writes):
                raise RefusedError(403, "Forbidden: Global manage access is required")
            return
        if of_collections:
            raise RefusedError(403, "Forbidden: Global access is required")
        mode = {entry["collection"]: entry["access"] for entry in access}.get(name)
        if mode is None:
            raise RefusedError(403, f"Forbidden: Access to collection {name} is required")
        of_points_alone = re.fullmatch(rf"{COLLECTION}/(index|cluster)", request.path)
        if of_points_alone and mode == "prw":
            raise RefusedError(403, f"Forbidden: Only points access is allowed for collection {name}")
        if writes and mode == "r":
            raise RefusedError(403, f"Forbidden: Write access to collection {name} is required")


def is_write(request: Request) -> bool:
    return request.method == "PUT" or request.path.endswith("/delete")


def access_of(token: str) -> Any:
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["access"]


def shown(answer: Any, access: Any) -> Any:
    """Leave out of a list of collections or aliases what the access does not name."""
    if isinstance(access, str) or "result" not in answer:
        return answer
    names = {entry["collection"] for entry in access}
    result = answer["result"]
    if "collections" in result:
        result["collections"] = [entry for entry in result["collections"] if entry["name"] in names]
    if "aliases" in result:
        result["aliases"] = [
            entry for entry in result["aliases"] if {entry["alias_name"], entry["collection_name"]} <= names
        ]
    return answer
