"""The largest batch that fits: the search that estimates share, on sizes known by formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from bench import fitting
from bench.costs import Spec
from bench.errors import UserError
from bench.estimated import MOST, Estimated, largest_batch

FIXED = 1_000


class Size(NamedTuple):
    total: int
    activations: int


def linear(number: int) -> int:
    return FIXED + 30 * number


def quadratic(number: int) -> int:
    return FIXED + 30 * number + number**2


def sudden(number: int) -> int:
    return FIXED + (0 if number <= 37 else 10**6)


def stairs(number: int) -> int:
    return FIXED + 500 * (number // 10)


def asked(of: Callable[[int], int], numbers: list[int]) -> Callable[[int], Size]:
    def ask(number: int) -> Size:
        assert number not in numbers
        numbers.append(number)
        return Size(of(number), of(number) - FIXED)

    return ask


@pytest.mark.parametrize("of", [linear, quadratic, sudden, stairs])
@pytest.mark.parametrize("start", [1, 36, 37, 38, 100])
def test_the_largest_that_fits_is_the_one_that_trying_all_finds(
    of: Callable[[int], int], start: int
) -> None:
    for room in (FIXED - 1, FIXED + 29, FIXED + 30, FIXED + 1234, of(50), of(100) - 1, of(100)):
        numbers: list[int] = []
        found = fitting.largest(asked(of, numbers), room, start=start, most=100)
        all_of_them = [number for number in range(1, 101) if of(number) <= room]
        expected = max(all_of_them, default=None)
        assert found == (expected and (expected, Size(of(expected), of(expected) - FIXED)))
        assert len(numbers) <= 13


def test_a_line_needs_three_questions() -> None:
    """4,000 bytes hold 1,000 and 100 times 30; 101 do not fit."""
    for start, expected in ((1, [1, 100, 101]), (5_000, [5_000, 100, 101]), (100, [100, 101])):
        numbers: list[int] = []
        found = fitting.largest(asked(linear, numbers), 4_000, start=start, most=10_000)
        assert found == (100, Size(4_000, 3_000))
        assert numbers == expected


def test_a_step_is_found_by_halves() -> None:
    numbers: list[int] = []
    found = fitting.largest(asked(sudden, numbers), FIXED + 10, start=8_192, most=8_192)
    assert found == (37, Size(FIXED, 0))
    assert len(numbers) < 20  # 13 halves and the guesses


def test_where_nothing_may_be_tried_nothing_is_asked() -> None:
    assert fitting.largest(asked(linear, []), 10**9, start=3, most=0) is None


def spec(**changes: int) -> Spec:
    fields = {"method": "any", "config": {}, "recipe": "", "backbone": {"name": "any"}}
    fields |= {"image_size": 32, "batch_size": 256, "cards": 1, "precision": "fp32"}
    return Spec(**fields | {"device": "cpu", "threads": 1} | changes)


def test_the_largest_batch_of_a_cell_is_of_eights() -> None:
    """7 bytes and 2 per image in a card of 100: 46 images fit, so 40."""

    def estimate(plugin: str, of: Spec, per_card: int) -> Estimated:
        return Estimated({"parameters": 7, "activations": 2 * per_card}, 1.0)

    assert largest_batch(estimate, "any", spec(), 100) == 40
    assert largest_batch(estimate, "any", spec(), 22) == 0
    assert largest_batch(estimate, "any", spec(), 10**9) == MOST
    # No more than there are images to train on, 1,281,167 over all cards.
    assert largest_batch(estimate, "any", spec(cards=64, batch_size=512), 10**9) == 20_016


def test_the_largest_batch_is_blank_where_nothing_can_be_estimated() -> None:
    def refuse(plugin: str, of: Spec, per_card: int) -> Estimated:
        raise UserError("its loop reads values")

    assert largest_batch(refuse, "any", spec(), 100) is None
