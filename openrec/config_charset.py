"""The characters of a run: one set, decided by ``Global``, that nothing in the config contradicts."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openrec.charset import Charset
from openrec.config_yaml import Place, at, dotted
from openrec.errors import ConfigError

logger = logging.getLogger("openrec")

_TEXT_KEYS = ("character_dict_path", "use_space_char")
_WHERE_TO_GET = {
    "ppocr_keys_v1.txt": "It is the Chinese dictionary of PaddleOCR (6,623 characters, Apache-2.0) and no part of this "
    "project. Download https://github.com/PaddlePaddle/PaddleOCR/blob/main/ppocr/utils/ppocr_keys_v1.txt and give its "
    "path with -o Global.character_dict_path=PATH.",
}


def _text_places(config: Any, place: Place = ()) -> Iterator[tuple[Place, str, Any]]:
    """Local values of the keys that decide the charset, in Train, Eval and PostProcess."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in _TEXT_KEYS and value is not None and value != "":
                yield (*place, key), key, value
            else:
                yield from _text_places(value, (*place, key))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from _text_places(value, (*place, i))


def _local_text(config: Mapping[str, Any]) -> list[tuple[Place, str, Any]]:
    return [found for name in ("Train", "Eval", "PostProcess") for found in _text_places(config.get(name), (name,))]


def _same(key: str, one: Any, other: Any) -> bool:
    if key == "character_dict_path" and isinstance(one, str) and isinstance(other, str):
        return os.path.normpath(os.path.expanduser(one)) == os.path.normpath(os.path.expanduser(other))
    return one == other


def settle_text_keys(config: dict[str, Any], given: set[Place]) -> None:
    """Let ``-o Global.<key>`` win over local values; take over a local value that Global leaves open."""
    section = config["Global"]
    for key in _TEXT_KEYS:
        local = [(place, value) for place, name, value in _local_text(config) if name == key]
        if key not in section and local and all(_same(key, value, local[0][1]) for _, value in local):
            section[key] = local[0][1]
        if ("Global", key) not in given:
            continue
        for place, value in local:
            if place not in given and not _same(key, value, section[key]):
                logger.warning("%s was %r; -o Global.%s=%s is used there too.", dotted(place), value, key, section[key])
                at(config, place[:-1])[key] = section[key]


def resolve_charset(config: Mapping[str, Any]) -> Charset:
    """The one ``Charset`` of a run, from ``Global.character_dict_path`` and ``Global.use_space_char``.

    A relative dictionary path is looked for in the working directory, then beside the ``openrec`` package
    (the configs name ``./tools/utils/EN_symbol_dict.txt``).

    Raises:
        ConfigError: a transform or ``PostProcess`` says something else than ``Global``; no such file.
    """
    section = config["Global"]
    problems = []
    for place, key, value in _local_text(config):
        default = None if key == "character_dict_path" else False
        if not _same(key, value, section.get(key, default)):
            problems.append(
                f"{dotted(place)} is {value!r}, but Global.{key} is {section.get(key, default)!r}: a run has one "
                f"set of characters. Remove {dotted(place)}, or make Global.{key} equal to it."
            )
    if problems:
        raise ConfigError("\n".join(problems))
    path, space = section.get("character_dict_path") or None, bool(section.get("use_space_char", False))
    if path is None:
        return Charset.load(None, space)
    charset = Charset.load(find_dictionary(str(path)), space)
    return dataclasses.replace(charset, source=str(path))


def find_dictionary(path: str) -> str:
    """``path`` as given when it is there, else the same path beside the package, else an error with advice."""
    file = Path(path).expanduser()
    if file.exists():
        return path
    beside = Path(__file__).resolve().parents[1] / file
    if not file.is_absolute() and beside.exists():
        return str(beside)
    advice = _WHERE_TO_GET.get(
        file.name,
        "Give the path of a UTF-8 text file with one character a line, e.g. "
        "-o Global.character_dict_path=./tools/utils/EN_symbol_dict.txt.",
    )
    raise ConfigError(f'Global.character_dict_path: "{path}" not found (working directory: {Path.cwd()}). {advice}')
