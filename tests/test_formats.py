"""A page or a row in other forms: the page's own numbers, unrounded, with their protocols."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from synthetic_results import KNN, LINEAR, board, result, track

from bench import cli, formats, statistics
from bench.beside import Beside
from bench.cells import one_line
from bench.columns import METRICS
from bench.errors import UserError
from bench.leaderboard import render_track
from bench.page_files import Page, write_track
from bench.results import Result, write

NOW = {"current": {}, "engine": 1, "beside": Beside()}
EVIL = r"""50% & \textbf{a_b}$x^2$ #1 ~[2]* "q" `t` <i>|--"""


def show(results: list[Result], form: str, method: str | None = None, **changes: object) -> str:
    return formats.show([Page(track(**changes), results, [])], form, method=method, **NOW)


def test_markdown_is_the_pages_own_table_with_its_protocols() -> None:
    page = render_track(track(), board(), current={}, engine=1)
    shown, protocols = show(board(), "markdown").rsplit("\n\n", 1)
    assert f"\n\n{shown}\n\n" in page
    assert f"\n- {protocols}\n" in page
    assert f"`{LINEAR}`" in protocols
    assert f"`{KNN}`" in protocols


def test_one_row_in_markdown_is_that_row_alone() -> None:
    table = show(board(), "markdown", "turn_net").split("\n\n")[0].splitlines()
    assert len(table) == 3
    assert "TurnNet" in table[2]


def test_json_has_the_unrounded_numbers_of_the_page() -> None:
    (page,) = json.loads(show(board(), "json"))
    assert (page["track"], page["headline"]) == ("clothes", f"linear_probe/best_top1@{LINEAR}")
    counts = {row["method"]: len(row["seeds"]) for row in page["rows"]}
    assert counts == Counter(run.method for run in board())
    for row in page["rows"]:
        runs = [run for run in board() if run.method == row["method"]]
        for column in page["columns"]:
            number = row["metrics"][column["key"]]
            values = [run.evaluations[column["hash"]].metrics[column["metric"]] for run in runs]
            assert number["mean"] == pytest.approx(np.mean(values))
            assert number["n"] == len(values)
            assert number["low"] < number["mean"] < number["high"]
            if row["method"] == "untrained":  # floors have their own variance alone
                cell = statistics.cell(values, runs[0].data.test_images)
                assert (number["low"], number["high"]) == pytest.approx((cell.low, cell.high))


def test_json_has_the_rank_intervals_that_the_page_shows() -> None:
    table = show(board(), "markdown").split("\n\n")[0].splitlines()
    names = [name.strip() for name in table[0].split("|")]
    (page,) = json.loads(show(board(), "json"))
    assert page["ranked"]
    ranked = 0
    for row in page["rows"]:
        rank = row["metrics"][page["headline"]]["rank"]
        (line,) = [line for line in table if row["title"] in line]
        shown = line.split("|")[names.index("rank")].strip().strip("*")
        ranked += rank is not None
        assert shown == ("" if rank is None else "-".join(map(str, sorted(set(rank)))))
    assert ranked == 3
    smoke = json.loads(show(board(), "json", smoke=True))[0]
    assert {n["rank"] for row in smoke["rows"] for n in row["metrics"].values()} == {None}


def test_csv_is_the_json_line_by_line() -> None:
    (page,) = json.loads(show(board(), "json"))
    lines = list(csv.DictReader(io.StringIO(show(board(), "csv"))))
    assert len(lines) == sum(len(row["metrics"]) for row in page["rows"])
    for row in page["rows"]:
        for column in page["columns"]:
            number = row["metrics"][column["key"]]
            (line,) = [
                line
                for line in lines
                if (line["method"], line["hash"], line["metric"])
                == (row["method"], column["hash"], column["metric"])
            ]
            for name in ("mean", "low", "high", "n"):
                assert float(line[name]) == number[name]
            best, worst = number["rank"] or ("", "")
            assert (line["rank_best"], line["rank_worst"]) == (str(best), str(worst))
            assert (line["protocol"], line["version"]) == (column["protocol"], "1")


def test_what_a_row_may_not_be_shown_without_goes_along() -> None:
    runs = [*board(), result("sly_net", 0, 0.6, row={"origin": "local", "title": "Sly"})]
    for form in ("json", "csv", "latex"):
        shown = show(runs, form, "sly_net")
        for mark in ("local", "lacks seeds"):
            assert mark in shown, form
    assert "not for ranking" in show(board(), "latex", smoke=True)
    assert "not for ranking" not in show(board(), "latex")
    assert "not above pixels" in show([*board(), result("low_net", 0, 0.5)], "latex", "low_net")


UNESCAPED = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textasciigrave{}": "`",
    "''": '"',
    "{[}": "[",
    "{]}": "]",
    "{*}": "*",
    "-{}": "-",
    **{f"\\{mark}": mark for mark in "{}$&#%_"},
}


def set_by_latex(text: str) -> str:
    """Return the characters that LaTeX sets, reading from the left; active ones are an error."""
    shown = ""
    while text:
        code = next((code for code in UNESCAPED if text.startswith(code)), None)
        if code is None:
            assert text[0] not in "\\{}$&#%_~^<>|`[]*", f"{text[0]!r} does something"
            assert not text.startswith("--")
        shown += text[0] if code is None else UNESCAPED[code]
        text = text[len(code or "1") :]
    return shown


@pytest.mark.parametrize("text", [EVIL, "a\nb", "plain", "------", "\\\\[2pt]", "Café ‮x"])
def test_latex_sets_a_text_and_nothing_else(text: str) -> None:
    assert set_by_latex(formats.escape(text)) == one_line(text)


def test_latex_tables_are_whole(tmp_path: Path) -> None:
    runs = [*board(), result("evil_net", 0, row={"title": EVIL})]
    text = show(runs, "latex", title=EVIL)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}", r"\end{table}"):
        assert text.count(rule) == 1
    assert "hline" not in text
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + 7
    wide = re.search(r"\\begin\{tabular\}\{(l[lr]+)\}", text)
    assert wide is not None
    assert {line.replace(r"\&", "").count("&") + 1 for line in lines} == {len(wide[1])}
    for key in (LINEAR, KNN):
        assert f"1 (\\texttt{{{key}}})" in text
    assert text.count("{") == text.count("}")


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    for name in ("clothes", "shoes"):
        folder = tmp_path / "results" / name
        for run in board():
            of_track = Result.model_validate(run.document() | {"track": name})
            write(folder / f"{run.run_id}.json", of_track)
        write_track(folder, track(id=name, title=name.title()))
    return tmp_path


def test_the_command_prints_and_writes_nothing(
    boards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(boards.rglob("*"))
    where = ("--leaderboards-dir", str(boards))
    assert cli.main(["leaderboard", "--format", "json", *where]) == 0
    assert [page["track"] for page in json.loads(capsys.readouterr().out)] == ["clothes", "shoes"]
    some = ("--format", "latex", "--track", "shoes", "--row", "turn_net")
    assert cli.main(["leaderboard", *some, *where]) == 0
    out = capsys.readouterr().out
    assert out.count(r"\begin{table}") == 1
    assert "TurnNet" in out
    assert sorted(boards.rglob("*")) == before


def test_ones_own_tables_are_printed_if_their_folder_is_named(
    boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "results" / "clothes~012abc"
    for run in board(seeds=3):
        of_track = Result.model_validate(run.document() | {"track": "clothes~012abc"})
        write(folder / f"{run.run_id}.json", of_track)
    write_track(folder, track(id="clothes~012abc"))
    where = ("--runs-dir", str(tmp_path / "runs"), "--leaderboards-dir", str(tmp_path / "none"))
    for which in ((), ("--track", "clothes~012abc"), ("--track", "clothes")):
        assert cli.main(["leaderboard", "--format", "json", *where, *which]) == 0
        (page,) = json.loads(capsys.readouterr().out)
        assert page["track"] == "clothes~012abc"
    assert cli.main(["leaderboard", "--format", "csv", *where, "--track", "cloth"]) == 2
    assert "no track 'cloth'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--format", "csv", "--track", "hats"), "no published track 'hats'"),
        (("--format", "csv", "--row", "torn_net"), "no row 'torn_net'; did you mean turn_net"),
        (("--row", "turn_net"), "--row is for --format"),
        (("--check", "--format", "json"), "give one of them"),
        (("--format", "xlsx"), "'xlsx' is not one of"),
    ],
)
def test_what_cannot_be_printed_is_refused(
    boards: Path, args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["leaderboard", *args, "--leaderboards-dir", str(boards)]) == 2
    found = capsys.readouterr()
    assert (said in found.err, found.out) == (True, "")


def test_nothing_to_show_is_said() -> None:
    with pytest.raises(UserError, match="no results to show"):
        show([], "json")


def test_every_standard_metric_can_be_shown() -> None:
    (page,) = json.loads(show(board(), "json"))
    shown = {(column["protocol"], column["metric"]) for column in page["columns"]}
    for protocol in ("linear_probe", "knn"):
        assert {(protocol, metric) for metric, _ in METRICS[protocol]} <= shown
