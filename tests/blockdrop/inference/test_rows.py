"""Which sizes of programs pay, and how groups are cut into them."""

import pytest

from blockdrop.inference.rows import SIZES, split, worthwhile


@pytest.mark.parametrize(
    ("seconds", "most", "sizes"),
    [
        ({1: 1.0, 4: 1.0, 16: 1.0, 64: 0.99}, 256, (1, 4)),
        ({1: 1.3, 4: 1.09, 16: 1.01, 64: 1.0}, 256, (1, 4)),
        ({1: 4.0, 4: 1.6, 16: 1.3, 64: 1.0}, 256, (1, 4, 16, 64)),
        ({1: 4.0, 4: 1.6, 16: 1.1}, 63, (1, 4, 16)),
        ({1: 1.0, 4: float("inf")}, 256, (1,)),
        ({1: 1.0}, 0, (1,)),
    ],
)
def test_sizes_pay_up_to_the_first_that_is_about_as_fast_as_any(
    seconds: dict[int, float], most: int, sizes: tuple[int, ...]
) -> None:
    assert worthwhile(seconds.__getitem__, most) == sizes, "and nothing else was measured"


@pytest.mark.parametrize("most", [None, 1, 4, 10, 64])
@pytest.mark.parametrize("sizes", [(1,), (1, 4), SIZES])
def test_every_row_goes_through_one_program(sizes: tuple[int, ...], most: int | None) -> None:
    for rows in range(300):
        parts = split(rows, sizes, most)
        assert sum(parts.values()) == rows
        assert all(size <= (most or 64) or size == 1 for size in parts)
        for size, part in parts.items():
            assert part % size == 0 or part % size >= 0.75 * size, "no program is filled up by more than a quarter"
