import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignment.errors import ModalignError, VectorError
from alignment.vectors import NOT_FINITE, ZERO, check_sound, invalid_rows, l2_normalize

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)
MATRICES: st.SearchStrategy[npt.NDArray[np.floating]] = st.one_of(
    hnp.arrays(np.float32, SHAPES, elements=VALUES), hnp.arrays(np.float64, SHAPES, elements=VALUES)
)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([np.nan, 1.0], NOT_FINITE),
        ([np.inf, 1.0], NOT_FINITE),
        ([-np.inf, np.inf], NOT_FINITE),
        ([1e39, 1.0], NOT_FINITE),  # infinite as float32
        ([3e38, 3e38], NOT_FINITE),  # its norm is infinite as float32
        ([0.0, 0.0], ZERO),
        ([1e-46, 0.0], ZERO),  # zero as float32
        ([1e-30, 1e-30], ZERO),  # its square is zero as float32
    ],
)
def test_an_unusable_row_is_named_with_its_reason(row: list[float], reason: str) -> None:
    assert invalid_rows(np.array([[1.0, 2.0], row, [3.0, 4.0]])) == {1: reason}


def test_sound_rows_have_no_fault() -> None:
    assert invalid_rows(np.array([[1.0, 0.0], [-1e-18, 0.0], [2e38, -2e38]])) == {}
    assert invalid_rows(np.empty((0, 5))) == {}


def test_integers_and_halves_are_judged_too() -> None:
    assert invalid_rows(np.array([[0, 0], [1, 0]], dtype=np.float16)) == {0: ZERO}
    assert invalid_rows(np.array([[np.inf, 0], [1, 0]], dtype=np.float16)) == {0: NOT_FINITE}


@given(MATRICES)
def test_every_row_is_either_at_fault_or_becomes_a_unit_vector(X: npt.NDArray[np.floating]) -> None:
    sound = [row for row in range(len(X)) if row not in invalid_rows(X)]
    Z = l2_normalize(X[sound])
    assert Z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(Z.astype(np.float64), axis=1), 1.0, rtol=1e-6)
    exact = X[sound].astype(np.float64)
    np.testing.assert_allclose(Z, exact / np.sqrt((exact**2).sum(axis=1, keepdims=True)), rtol=1e-5, atol=1e-7)


@given(MATRICES)
def test_faults_agrees_with_a_row_by_row_reading(X: npt.NDArray[np.floating]) -> None:
    expected = {}
    for i, row in enumerate(X):
        squares = [float(np.float32(value)) ** 2 for value in row]
        if not all(map(np.isfinite, row)) or sum(squares) >= float(np.finfo(np.float32).max) ** 2:
            expected[i] = NOT_FINITE
        elif sum(squares) < 2.0**-126:
            expected[i] = ZERO
    assert invalid_rows(X) == expected


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e30, 2e38])
def test_unit_does_not_depend_on_the_scale(scale: float) -> None:
    """The square of 1e30 is infinite as float32."""
    X = np.array([[0.3, -0.4, 1.2]], np.float32) * np.float32(scale)
    np.testing.assert_allclose(l2_normalize(X), [[3 / 13, -4 / 13, 12 / 13]], rtol=1e-6)


def test_unit_leaves_its_input_alone() -> None:
    X = np.array([[3.0, 4.0]], np.float32)
    l2_normalize(X)[0, 0] = 9
    assert X.tolist() == [[3.0, 4.0]]


def test_require_sound_passes_sound_rows() -> None:
    check_sound(np.ones((3, 2)), "vectors")


def test_require_sound_names_what_how_many_and_which() -> None:
    X = np.ones((6, 2))
    X[[1, 2, 3, 4]] = np.nan
    with pytest.raises(VectorError) as caught:
        check_sound(X, "queries")
    message = str(caught.value)
    assert message.startswith("queries: ")
    assert "4 of 6" in message
    assert "row 1: vector-not-finite, row 2: vector-not-finite, row 3: vector-not-finite)" in message
    assert isinstance(caught.value, ModalignError)
    assert isinstance(caught.value, ValueError)
