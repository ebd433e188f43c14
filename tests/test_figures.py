"""The picture: deterministic, readable, and tied to its rows."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from bench.figures import (
    Curve,
    Point,
    Sweep,
    cost_svg,
    figure_is_current,
    rows_sha256,
    sweep_svg,
    tuning_svg,
)

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


def heights(svg: str, labels: set[str]) -> list[float]:
    """Return where labels stand, in points from the top, sorted."""
    found = []
    for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if node.text in labels:
            moved = re.search(r"translate\([-\d.]+ ([-\d.]+)\)", node.get("transform", ""))
            found.append(float(node.get("y") or moved[1]))
    return sorted(found)


def test_labels_stand_apart_however_far_the_axis_reaches():
    """Ends that lie close together below curves, or intervals, that reach far above them."""
    names = [f"method {letter}" for letter in "abcdef"]
    curves = [Curve(name, (4000.0 + at, 700.0 + 10 * at)) for at, name in enumerate(names)]
    points = [Point(c.label, "method", 200.0, c.scores[-1], 600.0, 8000.0) for c in curves]
    for svg in (tuning_svg(curves), cost_svg(points)):
        places = heights(svg, set(names))
        assert len(places) == len(names)
        assert min(b - a for a, b in itertools.pairwise(places)) > 9  # the size of the letters


def test_a_long_name_of_the_axis_is_broken_and_not_cut():
    unit = "KID(efficientnet_lite0) x 1000"
    lines = texts(tuning_svg([Curve("a", (2.0, 1.0))], unit=unit))
    assert f"expected best validation score in {unit}" in " ".join(lines)
    assert max(map(len, lines)) <= 48  # letters of nine points along an axis of three inches


def test_names_of_lines_stand_above_what_is_drawn():
    lines = [
        Sweep(f"method {i}", ((1.0, i, i - 1, i + 1), (2.0, i, i - 1, i + 1))) for i in range(6)
    ]
    svg = sweep_svg(lines, xlabel="x", ylabel="y")
    frame = re.search(r'<g id="patch_2">\s*<path d="([^"]*)"', svg)[1]
    top = min(float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", frame))
    names = re.findall(r'<g id="text_\d+">\s*<text [^>]*y="([\d.]+)"[^>]*>method \d</text>', svg)
    assert len(names) == 6
    assert max(map(float, names)) < top
