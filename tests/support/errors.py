"""Errors in tests: their code and the values in their message, never their prose."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from alignment.errors import ModalignError


@contextmanager
def raises(kind: type[ModalignError], *values: object, code: str | None = None) -> Iterator[None]:
    """Expect an error of exactly this class and code, whose message names all of `values`."""
    with pytest.raises(kind) as caught:
        yield
    error = caught.value
    assert type(error) is kind
    assert error.code == (code or kind.code)
    missing = [value for value in map(str, values) if value not in str(error)]
    assert not missing, f"{missing} not in: {error}"
