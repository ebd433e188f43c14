"""A method's card as JSON, and a method's configuration from a recipe and overrides.

The planner and the pages see cards as JSON only; the live dataclasses stay in the child.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Mapping
from typing import Any

from bench.errors import UnknownName, UserError
from bench.hookspecs import MethodCard

# One text, since some families are called after a method, and no constant here may name a method.
FAMILIES = tuple(re.findall(r"\w+", "floor reference pretext contrastive gan vae diffusion other"))
ROLES = ("method", "floor", "ceiling")
INPUTS = ("rgb", "gray3", "lab_l", "lab_halves", "noisy")
BACKBONE_KINDS = ("vit", "conv")
MAX_SEARCH = 6


def card_to_dict(card: MethodCard) -> dict[str, Any]:
    """Return a card as JSON: tuples as lists, configurations as one value for each field.

    `fields` and `sampling_fields` map each field's name to its type as text. Values have their
    field's type, so `1` in a float field is `1.0`, whoever wrote it.

    Raises:
        UserError: the card is incomplete; all problems in one line.
    """
    if found := problems(card):
        raise UserError(f"incomplete card: {'; '.join(found)}")
    return {
        "title": card.title,
        "paper": card.paper,
        "family": card.family,
        "role": card.role,
        "defaults": _values(card.defaults),
        "fields": _type_names(card.defaults),
        "recipes": {name: _values(recipe) for name, recipe in sorted(card.recipes.items())},
        "search": {name: plain(list(dimension)) for name, dimension in card.search.items()},
        "sampling": None if card.sampling is None else _values(card.sampling),
        "sampling_fields": {} if card.sampling is None else _type_names(card.sampling),
        "uses_labels": card.uses_labels,
        "conditional": card.conditional,
        "input": card.input,
        "needs": plain(dict(card.needs)),
        "departs": card.departs,
    }


def problems(card: Any) -> list[str]:
    """Return what is wrong with a card, a line each; empty when it is complete."""
    if not isinstance(card, MethodCard):
        return [f"describe() returned {type(card).__name__}, expected bench.MethodCard"]
    found = []
    for name in ("title", "paper", "departs"):
        text = getattr(card, name)
        if not isinstance(text, str) or not text.strip() or "\n" in text:
            found.append(f"{name} is {text!r}, expected one line of text")
    if isinstance(card.paper, str) and not card.paper.startswith(("https://", "http://")):
        found.append(f"paper is {card.paper!r}, expected a URL")
    for name, allowed in (("family", FAMILIES), ("role", ROLES), ("input", INPUTS)):
        if getattr(card, name) not in allowed:
            found.append(f"{name} is {getattr(card, name)!r}, expected {', '.join(allowed)}")
    for name in ("uses_labels", "conditional"):
        if not isinstance(getattr(card, name), bool):
            found.append(f"{name} is {getattr(card, name)!r}, expected True or False")
    for name in ("recipes", "search", "needs"):
        if not isinstance(getattr(card, name), Mapping):
            found.append(f"{name} is {type(getattr(card, name)).__name__}, expected a mapping")
            return found
    found += _config_problems("defaults", card.defaults)
    if card.sampling is not None:
        found += _config_problems("sampling", card.sampling)
    if found:
        return found
    for name, recipe in card.recipes.items():
        if type(recipe) is not type(card.defaults):
            expected = type(card.defaults).__name__
            found.append(f"recipe {name!r} is {type(recipe).__name__}, expected {expected}")
        else:
            found += _config_problems(f"recipe {name!r}", recipe)
    return found + _search_problems(card) + _needs_problems(card.needs)


def recipe_used(card: Mapping[str, Any], recipe: str) -> str:
    """Return the recipe's name if the card (as JSON) has it, else "defaults"."""
    return recipe if recipe in card["recipes"] else "defaults"


def config_from(
    card: MethodCard,
    recipe: str,
    overrides: Mapping[str, str],
    *,
    method: str = "config",
    tuned: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return every field of the configuration as JSON: the recipe, or the defaults where the card
    has no such recipe, with overrides from text.

    Args:
        tuned: every field as JSON, to start from instead of the recipe.
        overrides: {field: text}; the text is read by the field's type. `none` is None where the
            field allows it, `1,2` and `[1, 2]` are a tuple of two.
        method: the name for messages.

    Raises:
        UnknownName: no such field; the message offers the nearest.
        UserError: the text is no value of the field's type, or the class refuses it.
    """
    config = card.recipes.get(recipe, card.defaults)
    values, types = dict(_values(config) if tuned is None else tuned), _types(config)
    for name, text in overrides.items():
        if name not in types:
            raise UnknownName(f"field of {method}", name, list(types))
        values[name] = plain(_parse(types[name], text, f"{method}.{name}"))
    config_object(card, values)
    return values


def config_object(card: MethodCard, values: Mapping[str, Any]) -> Any:
    """Return the instance of the class of `defaults` that JSON values describe.

    Raises:
        UserError: a field is missing, unknown, of another type, or refused by the class.
    """
    types = _types(card.defaults)
    for name in values:
        if name not in types:
            raise UnknownName("configuration field", name, list(types))
    if missing := [name for name in types if name not in values]:
        raise UserError(f"configuration lacks {', '.join(missing)}; expected {', '.join(types)}")
    checked = {name: _check(types[name], values[name], name) for name in types}
    try:
        return type(card.defaults)(**checked)
    except Exception as error:  # whatever the class's own __post_init__ raises
        raise UserError(f"configuration {dict(values)}: {_said(error)}") from None


def sampling_object(card: MethodCard, overrides: Mapping[str, Any]) -> Any:
    """Return the card's sampling settings with a protocol's overrides, of the fields that it has.

    A field that the method lacks is left alone: one protocol serves methods with other samplers.

    Raises:
        UserError: a value is of another type, or refused by the class.
    """
    types = _types(card.sampling)
    given = {name: _check(types[name], v, name) for name, v in overrides.items() if name in types}
    try:
        return dataclasses.replace(card.sampling, **given)
    except Exception as error:
        raise UserError(f"sampling {dict(overrides)}: {_said(error)}") from None


def _said(error: Exception) -> str:
    """Return what an error says in a line; its kind where it says nothing, as a bare assert."""
    return " ".join(str(error).split()) or type(error).__name__


def sampling_values(sampling: Any) -> dict[str, Any]:
    """Return every field of sampling settings as JSON."""
    return _values(sampling)


def plain(value: Any) -> Any:
    """Return a value as JSON: tuples become lists, dataclasses and mappings objects.

    Raises:
        UserError: a value has no JSON form, or is not finite.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{value!r} is not finite; expected a finite number")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise UserError(f"{value!r} has no JSON form; expected numbers, text, booleans, tuples or None")


def _types(config: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(type(config), include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(config) if field.init}


def _type_names(config: Any) -> dict[str, str]:
    return {
        name: kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        for name, kind in _types(config).items()
    }


def _values(config: Any) -> dict[str, Any]:
    return {
        name: plain(_check(kind, getattr(config, name), name))
        for name, kind in _types(config).items()
    }


def _check(kind: Any, value: Any, name: str) -> Any:
    """Return a value in its field's own type: 1 becomes 1.0 for a float, a list a tuple."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{name} is {value!r}: {_reason(error)}") from None


def _parse(kind: Any, text: str, name: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    adapter, reason = TypeAdapter(kind), ""
    for candidate in _readings(text):
        try:
            value = adapter.validate_python(candidate)
            plain(value)
        except ValidationError as error:
            reason = reason or _reason(error)
        except UserError as error:
            reason = reason or str(error)
        else:
            return value
    raise UserError(f"{name}={text}: {reason}")


def _readings(text: str) -> list[Any]:
    """Return what a text on the command line may mean, the likeliest first."""
    readings: list[Any] = [None] if text.strip().lower() in ("none", "null") else []
    readings.append(text)
    for candidate in (text, f"[{text.strip().strip('()')}]"):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if not isinstance(value, bool):  # "true" as text is no integer; as JSON it would be 1
            readings.append(value)
    return readings


def _reason(error: Any) -> str:
    first = error.errors()[0]
    place = "".join(f"[{part}]" for part in first["loc"])
    return f"{place} {first['msg']}".strip().replace("\n", " ")


def _config_problems(name: str, config: Any) -> list[str]:
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return [f"{name} is {type(config).__name__}, expected an instance of a frozen dataclass"]
    if not config.__dataclass_params__.frozen:
        return [f"{name}: {type(config).__name__} is not frozen; use @dataclass(frozen=True)"]
    if late := [field.name for field in dataclasses.fields(config) if not field.init]:
        return [f"{name}: {', '.join(late)} is not an argument of __init__; let it be one"]
    try:
        _values(config)
    except UserError as error:
        return [f"{name}: {error}"]
    except Exception as error:  # an annotation that names nothing, or no type pydantic can check
        first = str(error).splitlines()[0] if str(error) else ""
        return [f"{name}: the field types cannot be read ({type(error).__name__}: {first})"]
    return []


def _search_problems(card: MethodCard) -> list[str]:
    found, types = [], _types(card.defaults)
    if len(card.search) > MAX_SEARCH:
        found.append(f"search has {len(card.search)} dimensions, expected at most {MAX_SEARCH}")
    for name, dimension in card.search.items():
        if name not in types:
            found.append(f"search: {UnknownName('field', name, list(types))}")
        elif not isinstance(dimension, tuple | list) or len(dimension) < 2:
            found.append(f"search {name!r} is {dimension!r}, expected (kind, *arguments)")
        else:
            found += _dimension_problems(name, types[name], *dimension)
    return found


def _dimension_problems(name: str, kind: Any, law: Any, *arguments: Any) -> list[str]:
    if law == "log_uniform":
        numbers = [a for a in arguments if isinstance(a, int | float) and not isinstance(a, bool)]
        ordered = len(arguments) == len(numbers) == 2 and 0 < numbers[0] < numbers[1] < math.inf
        if not ordered:
            return [f"search {name!r}: log_uniform takes 0 < low < high, got {arguments!r}"]
    elif law != "choice":
        return [f"search {name!r} has the kind {law!r}, expected log_uniform or choice"]
    try:
        for value in arguments:
            plain(_check(kind, value, name))
    except UserError as error:
        return [f"search: {error}"]
    return []


def _needs_problems(needs: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in needs.items():
        if name == "backbone":
            if value not in BACKBONE_KINDS:
                found.append(f"needs backbone {value!r}, expected {' or '.join(BACKBONE_KINDS)}")
        elif name != "extras":
            found.append(f"needs: {UnknownName('key', str(name), ('extras', 'backbone'))}")
        elif not isinstance(value, tuple | list) or not all(isinstance(v, str) for v in value):
            found.append(f"needs extras {value!r}, expected a tuple of names")
    return found
