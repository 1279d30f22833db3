import socket
import sys

import pytest

from alignment.errors import MissingPackageError
from connector.errors import ExecutorError, SettingsError
from connector.executors.opening import open_executor
from tests.support.errors import raises


def test_local_is_this_process() -> None:
    with open_executor("local") as executor:
        assert executor is None


def test_a_malformed_value_is_refused_before_anything_is_started() -> None:
    with raises(SettingsError, "'local:0'", code="on"), open_executor("local:0"):
        pass


@pytest.mark.parametrize("on", ["auto", "local:2", "ray://127.0.0.1:10001"])
def test_without_ray_the_extra_to_install_is_named(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("connector.executors.ray_")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ray", None)
    with raises(MissingPackageError, on, "modalign[ray]"), open_executor(on):
        pass


@pytest.mark.parametrize("on", ["auto", "ray://127.0.0.1:{port}"])
def test_a_cluster_that_does_not_answer_is_an_error_at_once(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    on = on.format(port=port)
    with raises(ExecutorError, on, code="cluster-unreachable"), open_executor(on):
        pass
