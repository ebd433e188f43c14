"""The picture: deterministic, readable, and tied to its rows."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from bench.figures import Point, cost_svg, figure_is_current, rows_sha256

POINTS = [
    Point("ContrastNet", "method", 32.0, 92.5, 91.9, 93.1),
    Point("QueueNet v2", "method", 30.0, 92.9, 92.1, 93.7),
    Point("Supervised", "ceiling", 31.0, 97.9, 97.6, 98.2),
    Point("Random initialisation", "floor", 0.0, 51.0, 50.0, 52.0),
]


def texts(svg: str) -> list[str]:
    tree = ElementTree.fromstring(svg)
    return [node.text for node in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_every_row_is_named_in_text():
    assert {point.label for point in POINTS} <= set(texts(cost_svg(POINTS)))


def test_the_picture_is_current_for_its_rows_in_any_order():
    svg = cost_svg(POINTS)
    assert figure_is_current(svg, POINTS[::-1])
    assert svg == cost_svg(POINTS[::-1])


def test_the_picture_is_not_current_when_a_number_changes():
    svg = cost_svg(POINTS)
    changed = [replace(POINTS[0], accuracy=92.6), *POINTS[1:]]
    assert not figure_is_current(svg, changed)
    assert not figure_is_current(svg, POINTS[1:])
    assert not figure_is_current("<svg/>", POINTS)


def test_another_drawing_of_the_same_rows_is_current():
    svg = cost_svg(POINTS).replace("stroke-width", "stroke-opacity")
    assert figure_is_current(svg, POINTS)


def test_the_bytes_depend_on_no_environment():
    code = "from test_figures import *; sys.stdout.write(cost_svg(POINTS))"
    environment = {
        **os.environ,
        "PYTHONPATH": os.path.dirname(__file__),  # noqa: PTH120
        "PYTHONHASHSEED": "5",
        "TZ": "Asia/Tokyo",
        "SOURCE_DATE_EPOCH": "1",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    assert done.stdout == cost_svg(POINTS)


def test_a_users_settings_change_nothing_and_are_left_alone():
    import matplotlib

    before = cost_svg(POINTS)
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "mine"}):
        assert cost_svg(POINTS) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_hostile_labels_stay_text(recwarn):
    label = "x$y_z^2<b>&--> 日\x00\u202e"
    svg = cost_svg([replace(POINTS[0], label=label)])
    assert "x$y_z^2<b>&--> 日" in texts(svg)
    assert len(recwarn) == 0


def test_rows_without_training_alone_are_drawn():
    svg = cost_svg(POINTS[-1:])
    assert "Random initialisation" in texts(svg)


def test_the_hash_is_that_of_the_rows():
    assert rows_sha256(POINTS) == rows_sha256(POINTS[::-1]) != rows_sha256(POINTS[:-1])
