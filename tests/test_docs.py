"""README and docs say what is: boards are copied, links lead somewhere, every command runs.

The commands are run from a built wheel, outside the checkout. README's first command is run at
reduced cost: `--limit 160 --epochs 1 --seeds 1 --batch-size 80` is appended, and the wheel's own
`digits` has the evaluations of `small_track`. The tutorial is one session: all of its blocks, as
they stand, one after another in one folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nested_venv
import pytest
import small_track
from fill_board import PLUGIN, README, ROOT, filled, main_table

from bench.cli import bench

PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ROOT / "docs" / "writing-a-plugin.md"
REDUCED = ["--limit", "160", "--epochs", "1", "--seeds", "1", "--batch-size", "80"]


def blocks(kind: str) -> list[tuple[str, str]]:
    """Return (page, text) of each fenced block of a kind, the tutorial's apart."""
    found = []
    for page in PAGES:
        if page == TUTORIAL:
            continue
        for text in re.findall(rf"```{kind}\n(.*?)```", page.read_text(), re.DOTALL):
            found.append((page.name, text))
    return found


def commands() -> list[str]:
    """Return every command line of the console blocks and tables, split at &&."""
    lines = [
        line
        for kind in ("console", "bash")
        for _, text in blocks(kind)
        for line in text.splitlines()
    ]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build the wheel, install it beside nothing else, and return the environment that sees it."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith("leaderboards/results/"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [
            *pip,
            "install",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            str(place / "site"),
            str(source),
        ],
        check=True,
        timeout=300,
    )
    encoder = "encoders/fashion-mnist/model.safetensors"
    for data in ("tracks/digits.toml", "scaffold/method.py.template", encoder):
        assert (place / "site" / "bench" / data).is_file()
    small_track.write(place / "site" / "bench" / "tracks" / "digits.toml")
    return os.environ | {"PYTHONPATH": str(place / "site")}


def test_readme_shows_the_published_board_and_the_example_plugin() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == filled(text), "run python tests/fill_board.py"


def test_links_to_files_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_extras_that_the_docs_install_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for command in commands():
        for extra in re.findall(r"\.\[(\w+)\]", command):
            assert extra in extras


def test_every_command_is_of_a_known_form() -> None:
    for command in commands():
        assert re.match(r"(pip install|pytest|bench|ruff) ?", command), command


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("bench ")])
def test_bench_commands_run_from_the_wheel(
    command: str, installed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.read_text())
    words = command.split()[1:]
    if words[0] == "run":
        words += [
            x
            for pair in zip(REDUCED[::2], REDUCED[1::2], strict=True)
            if pair[0] not in words
            for x in pair
        ]
    run = subprocess.run(
        [sys.executable, "-c", "from bench.cli import main; import sys; sys.exit(main())", *words],
        cwd=tmp_path,
        env=installed,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert list((tmp_path / "runs" / "leaderboards").glob("digits*.md"))


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(installed: dict[str, str], tmp_path: Path) -> None:
    environment = nested_venv.create(tmp_path / "venv")
    environment |= {"PYTHONPATH": installed["PYTHONPATH"]}
    environment.pop("BENCH_LEADERBOARDS")  # here, as the reader's, in the working folder
    folder = tmp_path / "work"
    folder.mkdir()
    kinds = set()
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.M | re.S):
        kinds.add(kind)
        if kind == "console":
            for command in text.splitlines():
                run = nested_venv.run(command, folder, environment)
                assert run.returncode == 0, f"{command}: {run.stdout}{run.stderr}"
        elif kind == "python":
            command = [tmp_path / "venv" / "bin" / "python", "-c", text]
            subprocess.run(command, cwd=folder, env=environment, check=True, timeout=100)
        elif kind == "toml":
            (folder / named(text)).write_text(text)
        elif kind == "diff":
            patch(folder / named(text), text.partition("\n")[2])
        else:
            pytest.fail(f"a block of {kind!r} is not run")
    assert kinds == {"console", "python", "toml", "diff"}

    (board,) = (folder / "runs" / "leaderboards").glob("tiny*.md")
    head, row = (
        [cell.strip() for cell in line.split("|")]
        for line in main_table(board.read_text()).splitlines()
        if line.startswith(("| method", "| Two views, opposed features"))
    )
    assert row[head.index("tuning")] == "2"
    assert row[head.index("test reads")] == "1"
    assert row[head.index("passes")] == "2 + 0"
    assert list((folder / "runs" / "leaderboards-dev").glob("tiny*.md"))
    assert list((folder / "leaderboards" / "recipes").glob("tiny*/two_views.toml"))


def named(text: str) -> str:
    """Return the path in a block's first line, "# path"."""
    path = re.match(r"# (\S+)\n", text)
    assert path, f"expected '# path' above {text!r}"
    return path[1]


def patch(file: Path, difference: str) -> None:
    """Change the one place of a file that a diff without line numbers shows."""
    lines = difference.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} does not have, once: {old}"
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"`bench (\w[\w-]*)", "".join(p.read_text() for p in PAGES))))
)
def test_commands_named_in_the_docs_exist(command: str) -> None:
    assert command in bench.commands


def test_the_protocols_page_has_every_protocol_with_its_hash():
    from bench import evaluations

    page = (ROOT / "docs" / "protocols.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \d+ \| `([0-9a-f]{12})` \|", page, re.MULTILINE))
    assert rows == {name: evaluations.protocol(name).hash for name in evaluations.NAMES}
    for name in evaluations.NAMES:
        assert f"\n## {name}\n" in page
