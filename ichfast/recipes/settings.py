"""Nested settings: print them, change one by name, write and read them as JSON.

Settings are frozen dataclasses that hold values, tuples and other settings. A value
must have the annotated type; it is never converted, except a whole number to float.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import UnionType
from typing import Any, TypeVar, cast

from ichfast.errors import RecipeError, unknown

Settings = TypeVar("Settings")

Presets = Mapping[str, Mapping[str, Any]]
"""For each setting that can be chosen as a whole: its values by name."""

MAX_NAMED = 3
"""Upper limit of settings that a message names."""


def describe(settings: Any) -> str:
    """Format settings as lines of ``name = value``, with the names of `override`."""
    values = flatten(settings)
    return "\n".join(f"{name} = {json.dumps(values[name])}" for name in values)


def flatten(settings: Any) -> dict[str, Any]:
    """The value of each setting, by the names of `override`."""
    return dict(_leaves(settings, ""))


def _leaves(settings: Any, path: str) -> Iterator[tuple[str, Any]]:
    for each in dataclasses.fields(settings):
        name, value = f"{path}{each.name}", getattr(settings, each.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for index, part in enumerate(value):
                yield from _leaves(part, f"{name}.{index}.")
        else:
            yield name, value


def override(
    settings: Settings, assignments: Sequence[str], *, presets: Presets | None = None
) -> Settings:
    """Change settings by name.

    Args:
        settings: not changed.
        assignments: such as ``train.epochs=2`` or ``train.phases.0.lr=1e-3``;
            values are JSON, or plain text for a text setting.
        presets: settings that can be chosen as a whole, as in ``augment=light``.

    Returns:
        Changed settings.

    Raises:
        RecipeError: no such setting or preset, or a value of another type.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Data:
        ...     size: int = 224
        >>> override(Data(), ["size=256"])
        Data(size=256)
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set takes NAME=VALUE, got {assignment!r}")
        if presets and path in presets:
            if text not in presets[path]:
                raise RecipeError(f"--set {path}: {unknown(path, text, presets[path])}")
            chosen = {path: presets[path][text]}
            settings = dataclasses.replace(cast(Any, settings), **chosen)
        else:
            _check_name(path, [name for name, _ in _leaves(settings, "")])
            settings = _assign(settings, path.split("."), text, path)
    return settings


def _check_name(path: str, known: Sequence[str]) -> None:
    """Refuse an unknown name, and suggest the nearest known ones."""
    if path in known:
        return
    parts = [name for name in known if name.startswith(f"{path}.")]
    if parts:
        raise RecipeError(
            f"--set {path}: {path} is a group of settings; name one of them: "
            f"{', '.join(parts[:MAX_NAMED])}{', ...' if parts[MAX_NAMED:] else ''}"
        )
    raise RecipeError(f"--set {path}: no such setting; {_near_misses(path, known)}")


def _near_misses(path: str, known: Sequence[str]) -> str:
    """Suggest the settings whose last part, or whole name, is spelled similarly."""
    last_of = {name: name.rpartition(".")[2] for name in known}
    last = path.rpartition(".")[2]
    similar = difflib.get_close_matches(last, set(last_of.values()), n=1, cutoff=0.75)
    candidates = [name for name in known if last_of[name] in similar] or known
    cutoff = 0.0 if similar else 0.6
    near = difflib.get_close_matches(path, candidates, n=MAX_NAMED, cutoff=cutoff)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "`ichfast recipes NAME` prints all of a recipe"


def _assign(settings: Any, names: list[str], text: str, path: str) -> Any:
    """Copy nested settings with one value, which exists, replaced."""
    name, *rest = names
    if isinstance(settings, tuple):
        index = int(name)
        changed = _assign(settings[index], rest, text, path)
        return (*settings[:index], changed, *settings[index + 1 :])
    if rest:
        changed = _assign(getattr(settings, name), rest, text, path)
        return dataclasses.replace(settings, **{name: changed})
    wanted = typing.get_type_hints(type(settings))[name]
    return dataclasses.replace(settings, **{name: _parse(text, wanted, path)})


def _parse(text: str, wanted: Any, path: str) -> Any:
    for value in _readings(text):
        if _fits(value, wanted):
            return _convert(value, wanted)
    raise RecipeError(f"--set {path}: expected {_type_name(wanted)}, found {text!r}")


def _readings(text: str) -> Iterator[Any]:
    """Yield what a text may mean: JSON, several JSON values with commas, or itself."""
    for document in (text, f"[{text}]"):
        with suppress(json.JSONDecodeError):
            yield json.loads(document)
    yield text


def _type_name(wanted: Any) -> str:
    """Name a type, or the values to type where these are few."""
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, UnionType):
        return " or ".join(map(_type_name, typing.get_args(wanted)))
    if wanted in _FEW_VALUES:
        return _FEW_VALUES[wanted]
    # In Python 3.10 tuple[float, float] is a type too.
    return wanted.__name__ if isinstance(wanted, type) and not origin else str(wanted)


_FEW_VALUES = {bool: "true or false", type(None): "null"}
"""The values of types that have few, in JSON."""


def _fits(value: Any, wanted: Any) -> bool:
    try:
        _convert(value, wanted)
    except (TypeError, ValueError):
        return False
    return True


def _convert(value: Any, wanted: Any) -> Any:
    """Convert a JSON value to a setting's type; refuse all that would change it."""
    origin = typing.get_origin(wanted)
    if origin is not None:
        return _convert_generic(value, origin, typing.get_args(wanted))
    if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
        return from_dict(cast(Any, wanted), value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is float and isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    if wanted is not Any and type(value) is not wanted:
        raise TypeError
    return value


def _convert_generic(value: Any, origin: Any, parts: tuple[Any, ...]) -> Any:
    if origin in (typing.Union, UnionType):
        for option in parts:
            if _fits(value, option):
                return _convert(value, option)
        raise TypeError
    if origin is tuple:
        return _convert_tuple(value, parts)
    if origin is not dict or not isinstance(value, dict):
        raise TypeError
    return {str(name): _convert(each, parts[1]) for name, each in value.items()}


def _convert_tuple(value: Any, options: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        raise TypeError
    kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
    return tuple(_convert(each, kind) for each, kind in zip(value, kinds, strict=True))


def to_dict(settings: Any) -> dict[str, Any]:
    """Convert settings to plain values for JSON."""
    return dataclasses.asdict(settings)


def from_dict(kind: type[Settings], found: Mapping[str, Any]) -> Settings:
    """Make settings from plain values, the reverse of `to_dict`.

    Args:
        kind: the dataclass to make.
        found: the content of a JSON file. Not trusted.

    Raises:
        RecipeError: a setting is unknown, is missing or has another type.
    """
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in found.items():
        if name not in hints:
            raise RecipeError(unknown("setting", name, hints))
        try:
            values[name] = _convert(value, hints[name])
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"{name}: expected {_type_name(hints[name])}, found {value!r:.60}"
            ) from error
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"not all of {kind.__name__}: {error}") from error
