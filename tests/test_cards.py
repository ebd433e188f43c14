"""Cards as JSON, and configurations from recipes and overrides."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from bench import MethodCard, cards
from bench.errors import UnknownName, UserError
from bench.identity import canonical_json


@dataclass(frozen=True)
class Config:
    temperature: float = 0.1
    layers: int = 2
    head: Literal["none", "linear", "mlp"] = "mlp"
    nesterov: bool = False
    base_lr: float | None = 0.3
    milestones: tuple[float, ...] = (0.6, 0.8)
    crop: tuple[float, float] = (0.08, 1.0)
    tag: str = "plain"


@dataclass(frozen=True)
class Sampling:
    steps: int = 50


@dataclass(frozen=True)
class Other:
    temperature: float = 0.1


@dataclass
class Thawed:
    temperature: float = 0.1


@dataclass(frozen=True)
class Late:
    a: int = 1
    b: int = field(init=False, default=2)


@dataclass(frozen=True)
class Strange:
    a: object = object()


@dataclass(frozen=True)
class Unresolved:
    a: "NoSuchType" = 1  # noqa: F821, UP037


@dataclass(frozen=True)
class Picky:
    a: int = 1

    def __post_init__(self) -> None:
        if self.a > 5:
            raise ValueError("a is\nat most 5")
        if self.a == 0:
            raise AssertionError  # a bare one; pytest would write its own text into an assert
        if self.a == 3:
            raise IndexError("list index out of range")


def card(**changes: Any) -> MethodCard:
    given = {
        "title": "Mine",
        "paper": "https://example.org/paper",
        "family": "contrastive",
        "defaults": Config(),
        "recipes": {"small": Config(temperature=0.2, base_lr=None)},
        "search": {"temperature": ("log_uniform", 0.05, 1.0), "head": ("choice", "none", "mlp")},
        "sampling": Sampling(),
    }
    return MethodCard(**(given | changes))


def test_a_card_becomes_json_and_back():
    document = cards.card_to_dict(card())
    assert json.loads(json.dumps(document)) == document
    assert document["defaults"]["milestones"] == [0.6, 0.8]
    assert document["recipes"]["small"]["temperature"] == 0.2
    assert document["fields"]["layers"] == "int"
    assert document["fields"]["base_lr"] == "float | None"
    assert document["sampling"] == {"steps": 50}
    assert {f.name for f in dataclasses.fields(MethodCard)} <= set(document)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": ""}, "title"),
        ({"title": "two\nlines"}, "title"),
        ({"paper": "arXiv 1803.07728"}, "paper .* URL"),
        ({"paper": None}, "paper"),
        ({"family": "pretxt"}, "family"),
        ({"role": "reference"}, "role"),
        ({"input": "bgr"}, "input"),
        ({"departs": ""}, "departs"),
        ({"uses_labels": "no"}, "uses_labels"),
        ({"defaults": None}, "defaults is NoneType"),
        ({"defaults": Config}, "defaults is type"),
        ({"defaults": Thawed(), "recipes": {}, "search": {}}, "not frozen"),
        ({"defaults": Late(), "recipes": {}, "search": {}}, "b is not an argument"),
        ({"defaults": Strange(), "recipes": {}, "search": {}}, "no JSON form|cannot be read"),
        ({"defaults": Unresolved(), "recipes": {}, "search": {}}, "cannot be read.*NoSuchType"),
        ({"defaults": Config(temperature=float("nan"))}, "finite"),
        ({"defaults": Config(layers="two")}, "layers is 'two'"),  # type: ignore[arg-type]
        ({"defaults": Config(head="big")}, "head is 'big'"),  # type: ignore[arg-type]
        ({"recipes": {"small": Other()}}, "recipe 'small' is Other, expected Config"),
        ({"recipes": {"small": Config(layers=1.5)}}, "recipe 'small'"),  # type: ignore[arg-type]
        ({"recipes": None}, "recipes is NoneType"),
        ({"sampling": Thawed()}, "sampling"),
        ({"search": {"temprature": ("choice", 1.0)}}, "did you mean temperature"),
        ({"search": {"temperature": ("log_uniform", 0.0, 1.0)}}, "0 < low < high"),
        ({"search": {"temperature": ("log_uniform", 1.0, 0.1)}}, "0 < low < high"),
        ({"search": {"temperature": ("log_uniform", 1.0)}}, "0 < low < high"),
        ({"search": {"temperature": ("uniform", 0.1, 1.0)}}, "log_uniform or choice"),
        ({"search": {"temperature": "choice"}}, "expected .kind"),
        ({"search": {"head": ("choice", "none", "big")}}, "head is 'big'"),
        ({"search": {"layers": ("log_uniform", 0.5, 2.5)}}, "layers is 0.5"),
        ({"search": {n: ("choice", v) for n, v in dataclasses.asdict(Config()).items()}}, "most 6"),
        ({"needs": {"backbone": "rnn"}}, "needs backbone 'rnn'"),
        ({"needs": {"extra": ("av",)}}, "did you mean extras"),
        ({"needs": {"extras": "av"}}, "needs extras"),
    ],
)
def test_an_incomplete_card_is_refused(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        cards.card_to_dict(card(**changes))
    assert "\n" not in str(caught.value)


def test_all_problems_of_a_card_are_told_at_once():
    assert len(cards.problems(card(title="", family="?", role="?"))) == 3
    assert cards.problems(card()) == []


def test_what_is_no_card_is_named():
    assert cards.problems({"title": "Mine"}) == [
        "describe() returned dict, expected bench.MethodCard"
    ]


def test_a_recipe_gives_its_values_and_a_missing_one_the_defaults():
    assert cards.config_from(card(), "small", {})["temperature"] == 0.2
    assert cards.config_from(card(), "cifar10", {})["temperature"] == 0.1
    document = cards.card_to_dict(card())
    assert cards.recipe_used(document, "small") == "small"
    assert cards.recipe_used(document, "cifar10") == "defaults"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("temperature", "1e-3", 0.001),
        ("temperature", "2", 2.0),
        ("layers", "3", 3),
        ("layers", "1e2", 100),
        ("head", "none", "none"),
        ("nesterov", "true", True),
        ("nesterov", "False", False),
        ("base_lr", "none", None),
        ("base_lr", "null", None),
        ("base_lr", "0.6", 0.6),
        ("milestones", "0.5,0.9", [0.5, 0.9]),
        ("milestones", "[0.5, 0.9]", [0.5, 0.9]),
        ("milestones", "(0.5, 0.9)", [0.5, 0.9]),
        ("milestones", "0.5", [0.5]),
        ("milestones", "[]", []),
        ("tag", "1,2", "1,2"),
        ("tag", "none", "none"),
        ("tag", "", ""),
    ],
)
def test_an_override_is_read_by_its_fields_type(name, text, value):
    found = cards.config_from(card(), "small", {name: text})[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "warm"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "none"),
        ("temperature", ""),
        ("layers", "2.5"),
        ("layers", "true"),
        ("head", "big"),
        ("nesterov", "2"),
        ("crop", "0.5"),
        ("crop", "0.1,0.2,0.3"),
        ("milestones", "0.1,x"),
    ],
)
def test_an_override_of_another_type_is_one_line_with_method_and_field(name, text):
    with pytest.raises(UserError) as caught:
        cards.config_from(card(), "small", {name: text}, method="mine")
    assert str(caught.value).startswith(f"mine.{name}={text}: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"field of mine 'temprature'; did you mean temperature"):
        cards.config_from(card(), "small", {"temprature": "1"}, method="mine")


def test_values_have_one_json_whatever_the_author_wrote():
    whole = card(defaults=Config(temperature=1, milestones=[1]), recipes={})  # type: ignore[arg-type]
    exact = card(defaults=Config(temperature=1.0, milestones=(1.0,)), recipes={})
    written = cards.config_from(whole, "small", {"base_lr": "1"})
    assert canonical_json(written) == canonical_json(
        cards.config_from(exact, "small", {"base_lr": "1.0"})
    )


def test_config_object_rebuilds_the_instance_from_its_json():
    wanted = Config(temperature=0.7, milestones=(0.1, 0.2, 0.3), base_lr=None)
    values = json.loads(json.dumps(cards.plain(wanted)))
    assert cards.config_object(card(), values) == wanted


@pytest.mark.parametrize("change", [{"temprature": 1.0}, {"temperature": "warm"}, None])
def test_config_object_refuses_what_does_not_fit(change):
    values = cards.plain(Config())
    if change is None:
        del values["layers"]
    else:
        values |= change
    with pytest.raises(UserError):
        cards.config_object(card(), values)


def test_what_the_class_itself_refuses_is_one_line():
    picky = card(defaults=Picky(), recipes={}, search={})
    assert cards.config_from(picky, "small", {"a": "5"}) == {"a": 5}
    with pytest.raises(UserError, match="a is at most 5"):
        cards.config_from(picky, "small", {"a": "6"})
    with pytest.raises(UserError, match="AssertionError"):
        cards.config_from(picky, "small", {"a": "0"})
    with pytest.raises(UserError, match="index out of range"):
        cards.config_from(picky, "small", {"a": "3"})
