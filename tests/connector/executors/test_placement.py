import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.errors import SettingsError
from connector.executors.placement import Placement
from tests.support.errors import raises


@given(st.integers(1, 99_999))
def test_local_with_a_number_is_so_many_processes(count: int) -> None:
    placement = Placement.parse(f"local:{count}")
    assert (placement.processes, placement.address) == (count, None)


@pytest.mark.parametrize(
    ("on", "address"),
    [
        ("ray://head.example-1:10001", ("head.example-1", 10001)),
        ("ray://10.0.0.7:1", ("10.0.0.7", 1)),
        ("ray://[::1]:10001", ("::1", 10001)),
    ],
)
def test_an_address_names_host_and_port(on: str, address: tuple[str, int]) -> None:
    assert Placement.parse(on).address == address
    assert Placement.parse(on).processes is None


@pytest.mark.parametrize(
    "on",
    [
        "",
        "Local",
        "locally",
        "local:",
        "local:0",
        "local:-1",
        "local:1.5",
        "local:1 ",
        "local:1\n",
        "local:100000",
        "ray://",
        "ray://head",
        "ray://head:",
        "ray://head:0",
        "ray://head:65536",
        "ray://:10001",
        "ray://a b:1",
        "ray://user@head:1",
        "ray://head:1/x",
        "http://head:1",
        "head:6379",
        "auto:2",
        "automatic",
    ],
)
def test_a_place_that_there_is_not_is_refused_by_its_value(on: str) -> None:
    with raises(SettingsError, repr(on), code="on"):
        Placement.parse(on)


@given(st.integers(1, 500), st.integers(0, 500))
def test_workers_are_the_least_and_the_most(least: int, more: int) -> None:
    placement = Placement.parse("auto", workers=f"{least}:{least + more}")
    assert (placement.min_workers, placement.max_workers) == (least, least + more)


@pytest.mark.parametrize("workers", ["", "4", ":4", "4:", "0:4", "4:3", "-1:3", "a:b", "1:2:3", "1: 2", "1:2\n"])
def test_workers_that_are_no_range_are_refused(workers: str) -> None:
    with raises(SettingsError, repr(workers), code="workers"):
        Placement.parse("auto", workers=workers)


def test_more_workers_than_processes_are_refused() -> None:
    assert Placement.parse("local:2", workers="1:2").max_workers == 2
    with raises(SettingsError, "'3:9'", "local:2", "local:9", code="workers"):
        Placement.parse("local:2", workers="3:9")


@pytest.mark.parametrize("gpus", [0.0, 0.25, 1.0, 8.0])
def test_a_worker_has_a_share_of_a_gpu_or_whole_ones(gpus: float) -> None:
    assert Placement.parse("local:1", gpus_per_worker=gpus).gpus_per_worker == gpus


@pytest.mark.parametrize("gpus", [-1.0, 1.5, 0.00001, float("nan"), float("inf")])
def test_gpus_that_no_worker_can_have_are_refused(gpus: float) -> None:
    with raises(SettingsError, f"{gpus:g}", code="gpus-per-worker"):
        Placement.parse("local:1", gpus_per_worker=gpus)


@pytest.mark.parametrize(
    ("workers", "gpus", "code"), [("1:2", 0.0, "workers"), (None, 1.0, "gpus-per-worker"), ("1:2", 1.0, "workers")]
)
def test_this_process_has_no_workers_to_count(workers: str | None, gpus: float, code: str) -> None:
    with raises(SettingsError, "--on local", code=code):
        Placement.parse("local", workers=workers, gpus_per_worker=gpus)
