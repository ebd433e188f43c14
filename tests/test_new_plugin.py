"""`bench new-plugin` writes a package that installs, keeps the contract, and gives a row."""

from __future__ import annotations

import dataclasses
import fnmatch
import tomllib
from dataclasses import dataclass
from pathlib import Path

import nested_venv
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from bench import cards, checks, manager, new_plugin
from bench.cli import bench, main
from bench.engine import Trainer
from bench.probe import fork_server

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Author:
    """Where a third party works: a folder, an environment, and the package written into it."""

    folder: Path
    environment: dict[str, str]

    @property
    def package(self) -> Path:
        return self.folder / "bench-two-views"

    def run(self, command: str, folder: Path | None = None) -> str:
        done = nested_venv.run(command, folder or self.folder, self.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Author:
    """Write a package and install it, editable, into an environment of its own."""
    folder = tmp_path_factory.mktemp("author")
    third_party = Author(folder, nested_venv.create(folder / "venv"))
    third_party.run("bench new-plugin two_views --author 'Ada \"A.\" Müller'")
    third_party.run("pip install -e './bench-two-views[test]'")
    return third_party


def test_every_file_is_there(author: Author) -> None:
    files = [path for path in author.package.rglob("*") if path.is_file()]
    written = {str(p.relative_to(author.package)) for p in files if ".egg-info" not in str(p)}
    assert written == {
        ".github/workflows/tests.yml",
        ".gitignore",
        "LICENSE",
        "README.md",
        "bench_two_views.py",
        "pyproject.toml",
        "tests/test_two_views.py",
    }
    for path in files:  # nothing is left of the templates' variables but the workflow's own
        text = path.read_text(encoding="utf-8").replace("${{ matrix.python }}", "")
        assert "$" not in text, path


def test_the_author_stands_in_licence_and_metadata(author: Author) -> None:
    assert 'Ada "A." Müller\n' in (author.package / "LICENSE").read_text(encoding="utf-8")
    project = tomllib.loads((author.package / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["authors"] == [{"name": 'Ada "A." Müller'}]
    assert project["project"]["entry-points"]["bench"] == {"two_views": "bench_two_views"}


def test_the_workflow_is_yaml_whose_commands_exist(author: Author) -> None:
    yaml = pytest.importorskip("yaml")
    text = (author.package / ".github" / "workflows" / "tests.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["tests"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert [command.split()[0] for command in commands] == ["pip", "pip", "pytest", "bench"]
    bench.commands["run"].make_context("run", commands[-1].split()[2:])  # raises what it refuses


def test_the_method_is_short_and_formatted(author: Author) -> None:
    source = author.package / "bench_two_views.py"
    assert len(source.read_text().splitlines()) < 80
    for command in ("check -q --select E,F,I,UP,B", "format --check -q"):
        author.run(f"ruff {command} --no-cache .", author.package)


def test_its_card_is_the_one_written(author: Author) -> None:
    card = manager.load(str(author.package / "bench_two_views.py")).call("describe")
    assert card.title == "Two views"
    assert cards.problems(card) == []
    assert "small" in card.recipes
    for field, (_, low, high) in card.search.items():
        assert low < getattr(card.recipes["small"], field) < high


def train(rank: int, world: int, folder: str, plugin: str) -> None:
    """Train the generated method in one of `world` processes and leave its parameters."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    place = Path(folder)
    if world > 1:
        where = f"file://{place / 'rendezvous'}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world)
    images = np.random.default_rng(0).integers(0, 256, (32, 3, 16, 16), dtype=np.uint8)
    shared = {"seed": 0, "folder": place, "precision": "fp64", "rank": rank, "world": world}
    engine = Trainer(images, None, None, steps=3, batch_size=8, **shared)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Flatten())
    backbone.num_features = 6 * 7 * 7
    torch.manual_seed(0)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    loaded = manager.load(plugin)
    small = loaded.call("describe").recipes["small"]
    plain = {"features": 5, "optimizer": "sgd", "base_lr": 0.1, "warmup_epochs": 0.0}
    config = dataclasses.replace(small, **plain)
    model = loaded.call("pretrain", backbone=backbone, config=config, engine=engine)
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    torch.save(state, place / f"{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_train_it_as_one_does(tmp_path: Path) -> None:
    new_plugin.write("pair", tmp_path / "package", author="Me")
    plugin = tmp_path / "package" / "bench_pair.py"
    context, found = fork_server(), {}
    for world in (1, 2):
        place = tmp_path / f"world{world}"
        place.mkdir()
        processes = [
            context.Process(target=train, args=(rank, world, str(place), str(plugin)))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()
            process.join()
        assert [process.exitcode for process in processes] == [0] * world
        found[world] = torch.load(place / "0.pt", weights_only=True)
    assert found[1].keys() == found[2].keys()
    for name, expected in found[1].items():
        assert torch.allclose(found[2][name], expected, rtol=0, atol=1e-9), name


def test_its_own_tests_pass_and_ask_for_every_check(author: Author) -> None:
    """The checks themselves, and a row beside the floor, are the tutorial's, in test_docs.py."""
    printed = author.run('pytest -v -p no:cacheprovider -k "not contract"', author.package)
    assert "test_the_loss_matches_the_double_loop PASSED" in printed
    listed = author.run("pytest --collect-only -q -p no:cacheprovider", author.package)
    for check in checks.RULES:
        assert f"[two_views-{check}]" in listed


def test_a_built_distribution_has_the_templates() -> None:
    """tests/test_docs.py looks into a wheel; this says which template the settings leave out."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setup["package-data"]["bench"]
    for template in new_plugin.FILES.values():
        path = f"scaffold/{template}"
        assert (ROOT / "bench" / path).is_file()
        assert any(fnmatch.fnmatch(path, pattern) for pattern in patterns), template
    on_disk = {path.name for path in (ROOT / "bench" / "scaffold").iterdir()}
    assert on_disk == set(new_plugin.FILES.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Two-Views"], "no method can be called 'Two-Views': a method's name is lower-case"),
        (["Two-Views"], "did you mean two_views?"),
        (["2views"], "begins with a letter"),
        (["all"], "'all' is reserved by bench"),
        (["raw_pixels"], "'raw_pixels' is reserved by bench"),
        (["rotnet"], "the name 'rotnet' is installed by pretrain-bench"),
        (["plugins"], "a module bench_plugins exists already"),
        (["mine", "--into", "full"], "full exists and is not an empty folder"),
        (["mine", "--into", "file"], "file exists and is not an empty folder"),
        (["mine", "--into", "no/where"], "there is no folder"),
        (["mine", "--into", "."], "you are inside it"),
        (["mine", "--author", " "], "expected a name on one line"),
        (["mine", "--author", "A\nB"], "expected a name on one line"),
    ],
)
def test_bad_requests_write_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_plugin.Path, "write_text", None)  # nothing may come as far as this
        if "file" in arguments:  # click refuses it in words of its own
            message = "is a file"
        assert main(["new-plugin", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    written = new_plugin.write("mine", tmp_path / "mine", author="Me")
    assert all(path.is_file() for path in written)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_author_is_gits_user_or_the_distributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    new_plugin.write("first_try")
    licence = Path("bench-first-try", "LICENSE").read_text()
    assert "the authors of bench-first-try" in licence
    Path("gitconfig").write_text("[user]\nname = Grace\n")
    new_plugin.write("second_try")
    assert " Grace\n" in Path("bench-second-try", "LICENSE").read_text()


@pytest.mark.parametrize("at", ["write_text", "rename"])
def test_a_failure_leaves_nothing(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = getattr(Path, at)

    def failing(self: Path, *args: object, **kwargs: object) -> object:
        calls.append(self)
        if at == "rename" or len(calls) == 4:
            raise OSError(28, "No space left on device", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, at, failing)
    assert main(["new-plugin", "mine", "--into", str(tmp_path / "mine"), "--author", "Me"]) == 2
    assert list(tmp_path.iterdir()) == []
    assert calls
