"""Arrays on the wire: the same bytes as numpy writes, and nothing but numbers is read."""

from __future__ import annotations

import contextlib
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers
from numpy.typing import NDArray

from common.errors import InputError
from common.npy import from_npy, to_npy

ARRAYS = numbers.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    numbers.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


def saved(array: NDArray[np.generic]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@given(ARRAYS)
def test_the_bytes_are_numpys_own_and_come_back_equal(array: NDArray[np.generic]) -> None:
    *_, data = to_npy(array)
    assert data == saved(array)
    np.testing.assert_array_equal(from_npy(data), array)


def test_flower_reads_what_is_written_and_the_other_way_round() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(Array(*to_npy(array)).numpy(), array)
    np.testing.assert_array_equal(from_npy(Array(array).data), array)
    np.testing.assert_array_equal(from_npy(Array(np.asfortranarray(array)).data), array)


@pytest.mark.parametrize("view", [np.arange(6.0)[::2], np.arange(6.0).reshape(2, 3).T])
def test_a_view_is_written_as_the_array_it_shows(view: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(from_npy(to_npy(view)[3]), view)


GOOD = to_npy(np.arange(6, dtype=np.float32))[3]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        GOOD[:-1],
        GOOD + b"x",
        GOOD.replace(b"(6,)", b"(7,)"),
        GOOD.replace(b"(6,)", b"(-1"),
        GOOD.replace(b"<f4", b"|O8"),
        b"\x93NUMPY\x02" + GOOD[7:],
        b"\x80\x04" + GOOD,
    ],
)
def test_anything_but_an_array_of_numbers_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="not an array of numbers"):
        from_npy(data)


@settings(max_examples=300)
@given(st.data())
def test_mutated_bytes_give_an_array_or_the_one_error(data: st.DataObject) -> None:
    mutated = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        assert from_npy(bytes(mutated)).dtype.kind in "biuf"


def test_objects_are_never_written() -> None:
    with pytest.raises(InputError, match="not sent"):
        to_npy(np.array([{}], dtype=object))
