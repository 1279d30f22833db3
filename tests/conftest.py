"""Fixtures that several test modules share."""

import numpy as np
import pytest

from connector import encoders
from tests.fakes import fake_entry_points


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


@pytest.fixture
def fake_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `fake-image:NAME` and `fake-text:NAME` the only encoders there are."""
    monkeypatch.setattr(encoders, "entry_points", fake_entry_points)
