"""Configs: YAML files and ``-o`` overrides become one plain, checked dict.

    config = load_config("configs/rec/svtrv2/svtrv2_rctc.yml", ["Global.epoch_num=5"])
    check_config(config, "train")
    charset = resolve_charset(config)

Grammar and merge order (file with its ``_BASE_``, then flags, then ``-o``) are those of OpenOCR
(https://github.com/Topdu/OpenOCR, Apache-2.0), without its losses: every override is kept, list
elements can be addressed, and overriding an anchored value changes the places that aliased it.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrec.config_charset import resolve_charset, settle_text_keys
from openrec.config_check import check_config
from openrec.config_schema import GLOBAL, GLOBAL_ALIASES, REQUIRED
from openrec.config_yaml import Place, Tree, at, dotted, dump, load_tree, make_room, parse, put
from openrec.errors import ConfigError
from openrec.registry import nearest

__all__ = ["add_arguments", "check_config", "load_config", "parse_args", "resolve_charset", "save_config"]


def load_config(
    path: str | Path, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config of one run as plain dicts and lists.

    Args:
        path: a ``.yml`` or ``.yaml`` file.
        overrides: ``KEY=VALUE`` words; ``KEY`` is a dotted path whose parts are keys, list positions or,
            in a list of transforms, the name of one of them; ``VALUE`` is YAML.
        flags: other command-line flags to keep in the config (``eval``, ``local_rank``).

    Returns:
        The merged mapping. ``Global`` holds every known key (defaults filled in); ``filename`` and
        ``config`` name the file.

    Raises:
        ConfigError: unreadable file, repeated key, override that cannot be applied.
    """
    tree = load_tree(path)
    _rename_aliases(tree)
    tree.value.update({"filename": Path(path).stem, "config": str(path), **(flags or {})})
    given = _apply_overrides(tree, overrides)
    config = tree.value
    if isinstance(config.get("Global"), dict):
        settle_text_keys(config, given)
        for name, key in GLOBAL.items():
            if key.default is not REQUIRED and not key.ignored:
                config["Global"].setdefault(name, copy.deepcopy(key.default))
        if config["Global"]["character_dict_path"] == "":
            config["Global"]["character_dict_path"] = None
        _whole_numbers(config["Global"])
    return config


def _whole_numbers(section: dict[str, Any]) -> None:
    """``1e5`` for a key that counts something becomes the int 100000."""
    for name, value in section.items():
        if name in GLOBAL and GLOBAL[name].kind.startswith("int") and isinstance(value, float) and value.is_integer():
            section[name] = int(value)


def _rename_aliases(tree: Tree) -> None:
    """``Global.epochs`` is ``Global.epoch_num``, at the same position."""
    section = tree.value.get("Global")
    if not isinstance(section, dict):
        return
    for other, name in GLOBAL_ALIASES.items():
        if other not in section:
            continue
        if name in section and section[name] != section[other]:
            raise ConfigError(
                f"Global.{other} is {section[other]!r} and Global.{name} is {section[name]!r}: they are two "
                f"names of one key. Keep {name}."
            )
        renamed: dict[str, Any] = {}
        for key, value in section.items():
            renamed[GLOBAL_ALIASES.get(str(key), str(key))] = value
        tree.value["Global"] = renamed
        origin = tree.origins.pop(("Global", other), None)
        if origin is not None:
            tree.origins[("Global", name)] = origin
            if tree.anchors[origin] == ("Global", other):
                tree.anchors[origin] = ("Global", name)
        section = tree.value["Global"]


# ---- overrides -------------------------------------------------------------------------------------


def _split_override(word: str) -> tuple[list[str], Any]:
    key, equals, text = word.partition("=")
    if not equals or not key.strip() or not all(part.strip() for part in key.split(".")):
        raise ConfigError(
            f'-o {word}: expected KEY=VALUE with a dotted key, e.g. "Global.epoch_num=5" or '
            '"Train.dataset.transforms.0.DecodeImagePIL.img_mode=BGR".'
        )
    parts = [part.strip() for part in key.split(".")]
    if len(parts) == 2 and parts[0] == "Global":
        parts[1] = GLOBAL_ALIASES.get(parts[1], parts[1])
    return parts, parse(text, f"-o {word}").value


def _refuse_contradictions(words: Sequence[str], split: Sequence[tuple[list[str], Any]]) -> None:
    """``A=1 A.b=2`` cannot both hold."""
    for i, (outer, value) in enumerate(split):
        for j, (inner, _) in enumerate(split):
            below = len(inner) > len(outer) and inner[: len(outer)] == outer
            if below and not isinstance(value, dict) and not (isinstance(value, list) and i < j):
                raise ConfigError(
                    f"-o {words[i]} and -o {words[j]} contradict each other: the first makes "
                    f"{'.'.join(outer)} a plain value, the second sets a key inside it. Keep one of them."
                )


def _apply_overrides(tree: Tree, words: Sequence[str]) -> set[Place]:
    """Apply all overrides, then let aliases follow their anchors; returns the places that were named."""
    split = [_split_override(word) for word in words]
    _refuse_contradictions(words, split)
    followers: dict[Place, tuple[list[Place], Any]] = {}
    for word, (parts, value) in zip(words, split):
        place = _locate(tree.value, parts, word)
        for leaf, item in _leaves(tree.value, place, value):
            followers[leaf] = (followers[leaf][0] if leaf in followers else tree.aliases(leaf), item)
            make_room(tree, leaf)
            put(tree, leaf, copy.deepcopy(item))
    named = set(followers)
    for places, item in followers.values():
        for place in places:
            if not any(place[: len(n)] == n or n[: len(place)] == place for n in named) and _exists(tree.value, place):
                put(tree, place, copy.deepcopy(item))
    return named


def _exists(value: Any, place: Place) -> bool:
    try:
        at(value, place)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _leaves(config: Any, place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    """``value`` at ``place`` as single assignments: a mapping goes into a mapping, key by key.

    A list element is replaced as a whole: ``transforms.0={RecTVResize: {...}}`` exchanges a transform.
    """
    if place and isinstance(place[-1], int):
        yield place, value
    elif isinstance(value, dict) and value and _exists(config, place) and isinstance(at(config, place), dict):
        for key, item in value.items():
            yield from _leaves(config, (*place, key), item)
    else:
        yield place, value


def _locate(config: Any, parts: list[str], word: str) -> Place:
    """Dotted parts as a place in ``config``; the last keys may be new."""
    place: list[Any] = []
    here, rest = config, list(parts)
    while rest:
        if isinstance(here, dict):
            # A key may itself hold dots (a pattern of Optimizer.lr_mult): the longest match wins.
            taken = next((n for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in here), 1)
            key: Any = ".".join(rest[:taken])
            known = key in here
            here = here.get(key)
        elif isinstance(here, list):
            taken, found = 1, _element(here, rest[0], dotted(tuple(place)), word)
            place.extend(found[:-1])
            key, known = found[-1], True
            here = at(here, found)
        elif here is None:
            return (*place, *rest)
        else:
            raise ConfigError(f"-o {word}: {dotted(tuple(place))} is {here!r}, which has no keys.")
        place.append(key)
        rest = rest[taken:]
        if not known:
            return (*place, *rest)
    return tuple(place)


def _element(items: list[Any], part: str, where: str, word: str) -> Place:
    """One element of a list, by position or, for a list of one-key mappings, by that key."""
    if part.lstrip("-").isdigit():
        number = int(part)
        if not -len(items) <= number < len(items):
            raise ConfigError(
                f"-o {word}: {where} has {len(items)} elements (0 to {len(items) - 1}), there is no {number}."
            )
        return (number % len(items),)
    found = [(i, part) for i, item in enumerate(items) if isinstance(item, dict) and part in item]
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(str(i) for i, _ in found)
        raise ConfigError(f"-o {word}: {where} names {part} more than once; use its position ({numbers}).")
    keys = [key for item in items if isinstance(item, dict) for key in item]
    raise ConfigError(
        f'-o {word}: {where} is a list; "{part}" is neither a position nor a key in it.{nearest(part, keys)}'
    )


# ---- writing and command line ----------------------------------------------------------------------


def save_config(config: Mapping[str, Any], path: str | Path) -> None:
    """Write ``config`` as block-style YAML, keys in their order; the file appears whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(dump(dict(config)))
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def add_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """``-c``, ``-o`` and the flags of old launchers. ``required``: the tool cannot work without a config."""
    parser.add_argument(
        "-c",
        "--config",
        "--c",
        dest="config",
        required=required,
        metavar="FILE",
        help="config file (.yml), e.g. configs/rec/svtrv2/svtrv2_mamba_tiny.yml",
    )
    parser.add_argument(
        "-o",
        "--opt",
        "--o",
        dest="opt",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config values, e.g. -o Global.epoch_num=5 Train.loader.num_workers=2",
    )
    parser.add_argument("--local_rank", "--local-rank", dest="local_rank", default=None, help=argparse.SUPPRESS)


def parse_args(description: str = "", argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments ``config`` and ``opt`` of a tool; ``load_config(args.config, args.opt)`` comes next."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    return parser.parse_args(argv)
