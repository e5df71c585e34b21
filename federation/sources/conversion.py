"""Plain values as msgspec types, and why one does not fit: which part of it, in words, with a hint."""

import difflib
import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")

_ERROR = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<field>[^.\[]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


class Misfit(msgspec.Struct, frozen=True):
    """Why a value does not convert. `path` leads from the value to the part that is wrong."""

    path: tuple[str | int, ...]
    message: str
    hint: str = ""


def fit(value: object, type_: type[T]) -> T | Misfit:
    """Returns the value as `type_`, or the first reason why it cannot be."""
    try:
        return msgspec.convert(value, type_, str_keys=True)
    except msgspec.ValidationError as error:
        return _explained(str(error), value, type_)


def near(word: str, known: Iterable[str]) -> str | None:
    """Returns the one of `known` that `word` was probably meant to be; None when nothing is near."""
    by_lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None


def _explained(text: str, value: object, type_: type[object]) -> Misfit:
    match = _ERROR.fullmatch(text)
    assert match is not None  # the pattern takes every text
    what, path = match["what"], _located(match["path"] or "", text, value, type_)
    if missing := _MISSING.fullmatch(what):
        return Misfit((*path, missing[1]), f"`{missing[1]}` is missing")
    if unknown := _UNKNOWN.fullmatch(what):
        known = _fields_at(inspect.type_info(type_), path)
        meant = near(unknown[1], known)
        hint = f"did you mean `{meant}`?" if meant else f"known here: {', '.join(sorted(known))}"
        return Misfit((*path, unknown[1]), f"`{unknown[1]}` is not known here", hint)
    words = re.sub(r"`([^`]*)`", lambda quoted: " or ".join(map(_word, quoted[1].split(" | "))), what)
    message = words[:1].lower() + words[1:]
    return Misfit(path, f"a key here: {message}" if match["key"] else message, _quotes(what))


def _word(name: str) -> str:
    return _WORDS.get(name, f"`{name}`")


def _quotes(what: str) -> str:
    """Returns the hint for the two slips of quoting that YAML invites."""
    if re.match(r"Expected `str[^`]*`, got `(int|float|bool)`", what):
        return "put it in quotes"
    if re.match(r"Expected `(int|float|bool)[^`]*`, got `str`", what):
        return "write it without quotes"
    return ""


def _located(path: str, error: str, value: object, type_: type[object]) -> tuple[str | int, ...]:
    """Reads msgspec's path; where it says only `[...]` (some entry of a mapping), finds out which one."""
    steps: list[str | int] = []
    for step in _STEP.finditer(path):
        if step["field"]:
            steps.append(step["field"])
        elif step["index"]:
            steps.append(int(step["index"]))
        else:
            entries = _at(value, steps)
            keys = entries if isinstance(entries, dict) else ()
            guilty = [key for key in keys if _error_with_only(key, steps, value, type_) == error]
            if not guilty:
                break
            steps.append(guilty[0])
            value = _with_only(guilty[0], steps[:-1], value)
    return tuple(steps)


def _error_with_only(key: str, steps: list[str | int], value: object, type_: type[object]) -> str:
    try:
        msgspec.convert(_with_only(key, steps, value), type_, str_keys=True)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _with_only(key: str, steps: list[str | int], value: object) -> object:
    """Returns `value` with the mapping at `steps` reduced to one entry."""
    match value, steps:
        case dict(), []:
            return {key: value[key]}
        case dict(), [str(step), *rest]:
            return {**value, step: _with_only(key, rest, value[step])}
        case list(), [int(step), *rest]:
            return [*value[:step], _with_only(key, rest, value[step]), *value[step + 1 :]]
        case _:
            return value


def _at(value: object, steps: Iterable[str | int]) -> object:
    for step in steps:
        match value, step:
            case dict(), str():
                value = value.get(step)
            case list(), int():
                value = value[step]
            case _:
                return None
    return value


def _fields_at(type_: inspect.Type, path: tuple[str | int, ...]) -> set[str]:
    """Returns the field names that the struct at `path` knows; of all the structs it may be."""
    match type_, path:
        case inspect.UnionType(types=types), _:
            return {name for each in types for name in _fields_at(each, path)}
        case inspect.Metadata(type=inner), _:
            return _fields_at(inner, path)
        case inspect.StructType(fields=fields), ():
            return {field.encode_name for field in fields}
        case inspect.StructType(fields=fields), (step, *rest):
            found = [field for field in fields if field.encode_name == step]
            return {name for field in found for name in _fields_at(field.type, tuple(rest))}
        case ((inspect.ListType(item_type=inner) | inspect.VarTupleType(item_type=inner)), (_, *rest)):
            return _fields_at(inner, tuple(rest))
        case inspect.DictType(value_type=inner), (_, *rest):
            return _fields_at(inner, tuple(rest))
        case _:
            return set()
