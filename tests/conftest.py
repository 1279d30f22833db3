"""Fixtures that several test modules share."""

import numpy as np
import pytest
from hypothesis import settings

from connector import encoders
from tests.fakes import fake_entry_points

# Machines that run tests are busy: a deadline would fail on their load, not on the code.
settings.register_profile("modalign", deadline=None)
settings.load_profile("modalign")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


@pytest.fixture
def fake_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `fake-image:NAME` and `fake-text:NAME` the only encoders there are."""
    monkeypatch.setattr(encoders, "entry_points", fake_entry_points)
