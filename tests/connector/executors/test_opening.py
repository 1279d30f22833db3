import pytest

from connector.errors import SettingsError
from connector.executors.local import LocalExecutor
from connector.executors.opening import open_executor
from tests.support.errors import raises


def test_local_is_this_process() -> None:
    with open_executor("local") as executor:
        assert isinstance(executor, LocalExecutor)


@pytest.mark.parametrize("on", ["", "locally", "local:", "local:0", "ray://", "here"])
def test_a_place_that_there_is_not_is_refused_by_its_value(on: str) -> None:
    with raises(SettingsError, repr(on), code="on"), open_executor(on):
        pass
