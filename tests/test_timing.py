"""What `bench cost` makes of seconds: known answers worked by hand, and scripts for clocks."""

from __future__ import annotations

import pytest

from bench import timing
from bench.costs import protocol
from bench.timing import Lost

SETTINGS = protocol({"window_steps": 10, "warm_limit": 6}).settings


class Scripted:
    """A cell whose windows take the seconds per step that a list says, mode by mode."""

    def __init__(self, name, step_seconds, log, *, dies_at=None):
        self.name, self.log, self.dies_at = name, log, dies_at
        self.left = {mode: list(values) for mode, values in step_seconds.items()}

    def window(self, mode, steps):
        if len(self.log) == self.dies_at:
            raise Lost("failed", "gone")
        self.log.append((self.name, mode, steps))
        values = self.left[mode]
        return steps * (values.pop(0) if len(values) > 1 else values[0])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([10.0, 10.1, 10.2], True),  # 0.2 of 10.1: 1.98 %
        ([10.0, 10.1, 10.21], False),  # 0.21 of 10.1: 2.08 %
        ([10.0, 10.0], False),  # two windows are not three
        ([50.0, 10.0, 10.0, 10.0], True),  # only the last three count
        ([10.0, 10.0, 10.0, 50.0], False),
    ],
)
def test_the_last_windows_agree_within_two_percent_of_their_median(seconds, expected):
    assert timing.agree(seconds, 3, 0.02) is expected


@pytest.mark.parametrize(
    ("step_seconds", "most_seconds", "expected"),
    [(0.1, 10.0, 50), (0.2, 10.0, 50), (1.0, 10.0, 10), (60.0, 10.0, 2), (60.0, None, 50)],
)
def test_a_window_is_shortened_to_its_seconds_but_never_below_two_steps(
    step_seconds, most_seconds, expected
):
    assert timing.window_steps(step_seconds, 50, most_seconds) == expected


def test_median_and_quartiles_lie_between_the_values():
    assert timing.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == timing.Spread(3.0, 2.0, 4.0)
    assert timing.spread([1.0, 2.0, 3.0, 10.0]) == timing.Spread(2.5, 1.75, 4.75)
    assert timing.spread([7.0]) == timing.Spread(7.0, 7.0, 7.0)


def test_rates_count_the_images_of_all_steps_of_a_window():
    assert timing.rates([2.0, 4.0], 50, 32) == [800.0, 400.0]


def test_efficiency_compares_the_modes_round_by_round():
    pipeline, step = [80.0, 40.0, 45.0], [100.0, 50.0, 100.0]  # 0.8, 0.8, 0.45
    assert timing.efficiency(pipeline, step) == 0.8  # the ratio of the medians is 0.45


def test_two_hundred_epochs_are_divided_among_the_cards():
    # 200 x 1,281,167 = 256,233,400 images at 8 x 100 a second.
    assert timing.epochs_seconds(100.0, 8, 1_281_167, 200) == 320_291.75


def test_utilisation_is_the_share_of_the_peak():
    assert timing.utilisation(1000.0, 24e9, 312e12) == pytest.approx(24 / 312)


def test_others_load_is_what_the_measured_process_did_not_do():
    #         user nice sys idle wait irq soft steal guest nice
    before = [100, 0, 50, 900, 7, 1, 2, 3, 40, 0]
    after = [350, 20, 80, 950, 9, 2, 4, 11, 99, 0]
    # 250 + 20 + 30 + 1 + 2 + 8 = 311 ticks of work are 3.11 s; 2 s of them are ours, in 1.5 s.
    assert timing.busy_cores(before, after, 2.0, 1.5, 100) == pytest.approx(1.11 / 1.5)
    assert timing.busy_cores(before, after, 4.0, 1.5, 100) == 0.0  # ticks are coarse


def test_a_cell_is_warm_when_three_windows_agree():
    log = []
    steps = {
        "step": [9.0, 1.5, 1.4, 1.2, 1.0, 1.0, 1.01],  # first, rough, then windows
        "pipeline": [20.0, 2.0],
    }
    found = timing.begin(Scripted("a", steps, log), SETTINGS, bounded=False)
    assert found["step"] == timing.Warmth(9.0, 10, (14.0, 12.0, 10.0, 10.0, 10.1), True)
    assert found["pipeline"] == timing.Warmth(20.0, 10, (20.0, 20.0, 20.0), True)
    assert log[:3] == [("a", "step", 1), ("a", "pipeline", 1), ("a", "step", 2)]


def test_a_warm_up_that_never_agrees_ends_at_its_limit_and_says_so():
    seesaw = [1.0, 1.0, *[1.0, 2.0] * 10]
    cell = Scripted("a", {"step": seesaw, "pipeline": [1.0]}, [])
    found = timing.begin(cell, SETTINGS, bounded=False)
    assert not found["step"].reached
    assert len(found["step"].seconds) == 6
    assert found["pipeline"].reached


def test_windows_are_bounded_in_seconds_only_where_asked():
    cell = {"step": [4.0], "pipeline": [4.0]}  # ten steps would take 40 s, two take 8
    bounded = timing.begin(Scripted("a", cell, []), SETTINGS, bounded=True)
    free = timing.begin(Scripted("a", cell, []), SETTINGS, bounded=False)
    assert (bounded["step"].steps, free["step"].steps) == (2, 10)


def warmth(steps):
    return dict.fromkeys(timing.MODES, timing.Warmth(1.0, steps, (1.0,), True))


def test_cells_take_turns_a_b_a_b():
    log = []
    cells = {n: Scripted(n, {"step": [1.0], "pipeline": [1.5]}, log) for n in "AB"}
    seconds, lost = timing.take_turns(cells, {"A": warmth(4), "B": warmth(6)}, 2)
    assert [name for name, *_ in log] == ["A", "A", "B", "B", "A", "A", "B", "B"]
    assert [mode for _, mode, _ in log] == ["step", "pipeline"] * 4
    assert seconds["A"] == {"step": [4.0, 4.0], "pipeline": [6.0, 6.0]}
    assert seconds["B"] == {"step": [6.0, 6.0], "pipeline": [9.0, 9.0]}
    assert not lost


def test_a_cell_that_is_lost_does_not_take_the_others_along():
    log = []
    cells = {
        "A": Scripted("A", {"step": [1.0], "pipeline": [1.0]}, log),
        "B": Scripted("B", {"step": [1.0], "pipeline": [1.0]}, log, dies_at=3),
    }
    seconds, lost = timing.take_turns(cells, {"A": warmth(4), "B": warmth(4)}, 3)
    assert list(seconds) == ["A"]
    assert len(seconds["A"]["step"]) == 3
    assert lost["B"].reason == "gone"
