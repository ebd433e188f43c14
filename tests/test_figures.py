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
    looks,
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
    """Ends that lie close together below curves that reach far above them."""
    names = [f"method {letter}" for letter in "abcdef"]
    curves = [Curve(name, (4000.0 + at, 700.0 + 10 * at)) for at, name in enumerate(names)]
    places = heights(tuning_svg(curves), set(names))
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


def colors(svg: str) -> dict[str, str]:
    """Return the colour of each label that a picture writes beside a row."""
    return {
        node.text: re.search(r"fill: (#\w+)", node.get("style", ""))[1]
        for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
        if "fill: #" in node.get("style", "")
    }


def test_a_method_keeps_its_colour_when_its_rank_changes():
    turned = [replace(POINTS[0], accuracy=93.9), *POINTS[1:]]
    assert cost_svg(turned) != cost_svg(POINTS)
    assert colors(cost_svg(turned)) == colors(cost_svg(POINTS))


def test_a_method_has_one_colour_in_every_picture_of_a_page():
    methods = ["QueueNet v2", "ContrastNet"]
    curves = [Curve(point.label, (50.0, 60.0 + at)) for at, point in enumerate(POINTS)]
    shown = colors(cost_svg(POINTS, methods=methods))
    assert shown == colors(tuning_svg(curves, methods=methods))
    assert shown["Supervised"] == shown["Random initialisation"]
    assert len({shown[name] for name in ("Supervised", *methods)}) == 3
    lines = [Sweep(name, ((1.0, 1, 0, 2), (2.0, 2, 1, 3))) for name in ["Supervised", *methods]]
    swept = sweep_svg(lines, xlabel="x", methods=methods)
    assert [swept.count(f"stroke: {shown[line.label]}") > 0 for line in lines] == [True] * 3


def test_more_methods_than_colours_differ_by_mark_and_line():
    names = [f"method {letter}" for letter in "abcdefghijklmnopqr"]
    found = looks(names, names)
    assert len(set(found.values())) == len(names)
    assert len({look.color for look in found.values()}) == 6


def boxes(svg: str, labels: set[str]) -> dict[str, tuple[float, float, float, float]]:
    """Return about where labels lie: left, top, right, bottom, in points."""
    found = {}
    for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if node.text in labels:
            x, y = float(node.get("x")), float(node.get("y"))
            wide = 5 * len(node.text)
            left = x - (wide if "text-anchor: end" in node.get("style") else 0)
            found[node.text] = (left, y - 7, left + wide, y + 1)
    return found


def test_no_label_lies_on_a_point_or_on_another_label():
    """Two methods of nearly the same cost and accuracy, and one between two lines across."""
    points = [
        Point("MoCo v1", "method", 62.0, 51.2, 49.8, 52.7),
        Point("MoCo v2", "method", 65.0, 50.9, 49.5, 52.3),
        Point("SimCLR", "method", 55.0, 54.1, 52.8, 55.5),
        Point("RotNet", "method", 48.0, 40.2, 38.7, 41.6),
        Point("Raw pixels", "floor", 0.0, 44.9, 44.0, 45.8),
        Point("Random initialisation", "floor", 0.0, 40.3, 36.0, 44.0),
    ]
    near = [
        Point(f"method {letter}", "method", 200.0, 700.0 + 10 * at, 600.0, 8000.0)
        for at, letter in enumerate("abcdef")
    ]
    twice = [*points, replace(points[0], label="MoCo v1 (m=0.9)", seconds=64.0)]
    for shown in (points, points[:2], twice, near):
        svg = cost_svg(shown)
        found = boxes(svg, {point.label for point in shown})
        assert len(found) == len(shown)
        marks = [
            (float(x), float(y))
            for x, y in re.findall(
                r'<use xlink:href="#m[^"]*" x="([\d.]+)" y="([\d.]+)" style', svg
            )
        ]
        assert len(marks) >= len([1 for point in shown if point.seconds > 0])
        for left, top, right, bottom in found.values():
            assert not [1 for x, y in marks if left < x < right and top < y < bottom]
        for one, other in itertools.combinations(found.values(), 2):
            apart = one[2] <= other[0] or other[2] <= one[0]
            assert apart or one[3] <= other[1] or other[3] <= one[1]


def test_distances_far_apart_have_a_logarithmic_axis_and_accuracies_an_even_one():
    far = [Point(f"m{at}", "method", 9.0, 10.0**at, 0.9 * 10**at, 1.1 * 10**at) for at in (2, 3, 4)]
    assert {"200", "1000", "5000"} <= set(texts(cost_svg(far)))
    negative = [*far, Point("m5", "method", 9.0, 1.0, -1.0, 3.0)]  # an unbiased KID can be
    assert "1000" not in texts(cost_svg(negative))
    assert {"60", "80"} <= set(texts(cost_svg(POINTS)))


def test_numbers_along_an_axis_stand_apart():
    """Methods spend about what a budget of FLOPs buys, in whole steps of their own."""
    lines = [
        Sweep("a", ((644.0, 1, 0, 2), (1300.0, 2, 1, 3), (2600.0, 3, 2, 4))),
        Sweep("b", ((652.0, 1, 0, 2), (1299.0, 2, 1, 3), (2570.0, 3, 2, 4))),
    ]
    shown = texts(sweep_svg(lines, xlabel="x", digits=2))
    assert [label for label in ("640", "650", "1300", "2600") if label in shown] == [
        "640",
        "1300",
        "2600",
    ]
