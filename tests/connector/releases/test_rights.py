"""Rights, against an imitation of a server that takes tokens; `tests/live/test_rights.py` has a real one."""

from collections.abc import Iterator

import pytest

from tests.support.faulty_server import running
from tests.support.guarded_server import GuardedServer
from tests.support.qdrant_servers import API_KEY, ROOT
from tests.support.rights_contract import Guarded, RightsContract, table

pytestmark = [
    pytest.mark.usefixtures("fake_encoders"),
    pytest.mark.filterwarnings(
        "ignore:Payload indexes have no effect in the local Qdrant:UserWarning",
        "ignore:Local mode performs exact:UserWarning",
    ),
]


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with running(GuardedServer(key=API_KEY)) as server:
        yield Guarded(server.url, API_KEY)


@pytest.fixture
def collection() -> str:
    return "things"


class TestRights(RightsContract):
    """The rights of each command."""


def test_the_documentation_has_the_table() -> None:
    assert table() in (ROOT / "docs" / "server.md").read_text()
