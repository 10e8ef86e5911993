"""Are the arguments of a named part of the kind and size that its constructor asks for?

Kinds come from the constructor's annotations. What no annotation can say stands here once, by the names that all parts
share: which numbers may be 0, which come in pairs, which are parts of a whole.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrec import config_schema as schema
from openrec import registry
from openrec.errors import ConfigError

# The whole numbers of a model that may be 0 though they are not by default; others size or count what has to be there.
MAY_BE_ZERO = frozenset({"dn_number", "enc_layers", "freeze_steps", "num_encoder_layers", "warm_start_epochs"})

_SIZE = "[height, width]"
PAIRS = {
    "anchor_wh": "[width, height]", "grid": "[rows, columns]", "loc_size": _SIZE, "map_size": _SIZE, "max_size": _SIZE,
    "max_sz": _SIZE, "output_size": _SIZE, "tps_inputsize": _SIZE, "tps_margins": "[x, y]", "tps_outputsize": _SIZE,
}  # fmt: skip
LISTS_OF_PAIRS = {"sub_k": "[vertical, horizontal]"}  # the last one may be [-1, -1] where it is of no transition

_ABOVE_ZERO = (lambda v: v > 0, "above 0")
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "anchor_wh": (lambda v: 0 < v <= 1, "above 0 and at most 1, parts of the image"),
    "doubly_stochastic": (lambda v: v >= 0, "of at least 0"),
    "expand": _ABOVE_ZERO,
    "mlp_ratio": _ABOVE_ZERO,
    "pe_temperature": _ABOVE_ZERO,
    "ssm_expand": _ABOVE_ZERO,
    "tps_margins": (lambda v: 0 <= v < 0.5, "at least 0 and below 0.5, shares of the image"),
}


def named(section: Any, config: Any, where: str, shown: str = "") -> list[str]:
    """Problems of one ``{name: ..., **arguments}`` mapping, or of a nested mapping of a known class.

    Args:
        section: a section of the registry, or a class.
        shown: the place of the name itself where it is not ``where``.
    """
    if not isinstance(config, Mapping):
        return [f"{where}: expected a mapping with a name and its arguments, got {config!r}."]
    target = section
    if isinstance(section, str):
        if "name" not in config:
            return [f"{where}.name: missing. Known: {', '.join(registry.names(section))}."]
        try:
            target = registry.resolve(section, config["name"], shown or where)
        except ConfigError as error:
            return [str(error)]
    nested = getattr(target, "nested", {})
    plain = {k: v for k, v in config.items() if k not in nested}
    given = schema.CONTEXT_KEYS | set(nested) & set(config)
    problems = registry.check_keys(target, plain, where, given=given)
    problems += argument_problems(target, plain, where, sizes=where.startswith("Architecture"))
    for key, inner in nested.items():
        if config.get(key) is not None:
            problems += named(inner, config[key], f"{where}.{key}")
    return problems


def argument_problems(target: Any, config: Mapping[str, Any], where: str, sizes: bool = True) -> list[str]:
    """Arguments in ``config`` of another kind than ``target`` annotates, or, with ``sizes``, of no use as a size."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return []  # annotations that cannot be evaluated say nothing about kinds
    known, aliases = registry.parameters(target), getattr(target, "key_aliases", {})
    problems = []
    for key, value in config.items():
        name = key if key in known else aliases.get(key, key)
        if name not in hints or name not in known or (key.endswith("_list") and isinstance(value, str)):
            continue  # a list may be one path or file
        if not fits(value, hints[name]):
            problem = f"expected {_wording(hints[name])}, got {value!r}{schema.quoted_number_hint(value)}."
        elif "drop" in name and hints[name] is float and not 0 <= value < 1:
            problem = f"expected a probability, at least 0 and below 1, got {value!r}."
        else:
            problem = _number_problem(name, value, hints[name], known[name].default) if sizes else ""
        problems += [f"{where}.{key}: {problem}"] if problem else []
    return problems


def _number_problem(name: str, value: Any, hint: Any, default: Any) -> str:
    """What is wrong with the numbers in a model's argument of the right kind; nothing: an empty text."""
    unused = name in LISTS_OF_PAIRS and list(value[-1:]) == [[-1, -1]]
    numbers = list(_numbers(value[:-1] if unused else value))
    if name in PAIRS and value is not None and len(value) != 2:
        return f"expected two numbers {PAIRS[name]}, got {value!r}."
    if name in LISTS_OF_PAIRS and any(len(pair) != 2 for pair in value):
        return f"expected pairs {LISTS_OF_PAIRS[name]}, got {value!r}."
    test, wording = RANGES.get(name, (None, ""))
    if test is not None and not all(map(test, numbers)):
        return f"expected {'numbers' if _is_list(value) else 'a number'} {wording}, got {value!r}."
    least = 0 if name in MAY_BE_ZERO else min(1, default) if type(default) is int else 1
    if _holds(hint, int) and numbers and min(numbers) < least:
        what = "whole numbers" if _is_list(value) else "a whole number"
        return f"expected {what} of at least {least}, got {value!r}."
    return ""


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value of lists in lists."""
    if _is_list(value):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _holds(hint: Any, kind: type) -> bool:
    return hint is kind or any(_holds(inner, kind) for inner in typing.get_args(hint))


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can be what an annotation asks for; unknown annotations accept anything."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, h) for h in inner)
    if origin is typing.Literal:
        return value in inner
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and value == int(value)
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (str, Path):
        return isinstance(value, str)
    base = origin or hint
    if not inspect.isclass(base):
        return True
    if issubclass(base, Mapping):
        return isinstance(value, Mapping)
    if issubclass(base, (Sequence, Iterable)) and base is not str:
        elements = inner[0] if inner and (base is not tuple or len(set(inner) - {...}) == 1) else Any
        return isinstance(value, Sequence) and not isinstance(value, str) and all(fits(v, elements) for v in value)
    return True


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def _wording(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_wording(h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        values = [str(v) for v in typing.get_args(hint)]
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    base = typing.get_origin(hint) or hint
    if inspect.isclass(base) and issubclass(base, Mapping):
        return "a mapping"
    if inspect.isclass(base) and base not in _WORDS and issubclass(base, Iterable):
        inner = [h for h in typing.get_args(hint) if h is not ...]
        return f"a list of ({_wording(inner[0])})" if inner else "a list"
    return _WORDS.get(base, getattr(base, "__name__", str(base)))
