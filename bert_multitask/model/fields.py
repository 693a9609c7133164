"""The fields of a dataclass as YAML and JSON write them: converted to the types of its annotations, and checked."""

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .errors import InputError, explained


def settle_fields(spec: Any, where: str) -> None:
    """Convert the fields of a dataclass that YAML and JSON cannot write, and refuse values of other types (see `fits`).

    Args:
        spec: of a dataclass whose annotations are classes, unions, `dict[…]` and `Sequence[…]`. It may be frozen.
        where: what it specifies, for the message.
    """
    for name, hint in get_type_hints(type(spec)).items():
        with explained(where, InputError):
            value = convert(getattr(spec, name), hint, name)
        if not fits(value, hint):
            raise InputError(f"{where}: {name} is {getattr(spec, name)!r}; expected {describe(hint)}")
        object.__setattr__(spec, name, value)


def convert(value: Any, hint: Any, where: str) -> Any:
    """A list as a tuple and a dictionary as a dataclass, where the annotation has these; else the value as it is."""
    for one in get_args(hint) if get_origin(hint) is UnionType else (hint,):
        if dataclasses.is_dataclass(one) and isinstance(value, dict):
            return read_fields(one, value, where)
        if get_origin(one) is Sequence and isinstance(value, (list, tuple)):
            return tuple(convert(item, get_args(one)[0], where) for item in value)
    return value


def read_fields(cls: type, fields: dict, where: str) -> Any:
    """Make a dataclass of its fields as YAML writes them.

    Raises:
        InputError: a field is unknown, or one without a default is missing.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    names = ", ".join(sorted(known))
    if unknown := sorted(str(name) for name in fields if name not in known):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"its fields are {names}"
        raise InputError(f"{where}: unknown field {unknown[0]!r}; {hint}")
    for name, field in known.items():
        if name not in fields and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: {name} is missing; its fields are {names}")
    return cls(**fields)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. A whole number counts as a float, as YAML writes it. NaN, infinities,
    true and false are no numbers."""
    arguments = get_args(hint)
    if get_origin(hint) is UnionType:
        return any(fits(value, argument) for argument in arguments)
    if get_origin(hint) is dict:
        key, item = arguments
        return isinstance(value, dict) and all(fits(one, key) and fits(two, item) for one, two in value.items())
    if get_origin(hint) is Sequence:
        return isinstance(value, tuple) and all(fits(item, arguments[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """An annotated type in words."""
    words = {
        str: "a text (write a number in quotes)",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        dict: "{name: value, …}",
        NoneType: "nothing",
    }
    arguments = get_args(hint)
    if get_origin(hint) is UnionType:
        return " or ".join(map(describe, arguments))
    if get_origin(hint) is dict:
        return f"{{name: {describe(arguments[1])}, …}}"
    if get_origin(hint) is Sequence:
        return f"[{describe(arguments[0])}, …]"
    return words[hint] if hint in words else f"{{{dataclasses.fields(hint)[0].name}: value, …}}"
