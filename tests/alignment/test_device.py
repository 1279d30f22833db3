import pytest
import torch

from alignment.device import resolve
from alignment.errors import DeviceError
from tests.support.errors import raises


def no_accelerator(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (1, True, "cuda")],
)
def test_auto_takes_the_fastest(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str) -> None:
    no_accelerator(monkeypatch, cuda=cuda, mps=mps)
    assert resolve() == resolve("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1", "mps"])
def test_a_device_that_is_there_is_taken_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    no_accelerator(monkeypatch, cuda=2, mps=True)
    assert resolve(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_missing_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    no_accelerator(monkeypatch)
    with raises(DeviceError, name, "--device auto"):
        resolve(name)


def test_a_number_beyond_the_last_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    no_accelerator(monkeypatch, cuda=2)
    with raises(DeviceError, "cuda:2"):
        resolve("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:x", "cuda:-1", "0", "nonsense:1"])
def test_what_is_no_device_is_refused_by_name(name: str) -> None:
    with raises(DeviceError, repr(name), "auto, cpu, cuda"):
        resolve(name)


@pytest.mark.parametrize("name", ["meta", "xla", "vulkan"])
def test_a_device_of_torch_that_computes_nothing_here_is_refused(name: str) -> None:
    with raises(DeviceError, name):
        resolve(name)
