"""YAML files as plain dicts that remember which places shared an anchor.

Differences from ``yaml.safe_load``: ``1e-4`` is a number (YAML 1.2), dates and ``1:30`` stay text, a
repeated key is an error, ``_BASE_`` files are merged in, and every place is remembered together with
the YAML node it came from, so that an override of an anchored value can follow its aliases.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from openrec.errors import ConfigError
from openrec.registry import nearest

Place = tuple[Any, ...]  # keys (str) and list positions (int) from the top of the config

_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?
    |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.X,
)
_INT = re.compile(r"^[-+]?(?:0b[01_]+|0[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
_MAX_NODES = 200_000  # an alias inside an alias multiplies; far above any real config


def _use_yaml12_numbers(cls: type) -> None:
    """Give a loader or dumper class its own table of what plain scalars mean."""
    drop = ("float", "int", "timestamp")
    table = {
        first: [(tag, pattern) for tag, pattern in entries if tag.rsplit(":", 1)[-1] not in drop]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, pattern, firsts in (("int", _INT, "-+0123456789"), ("float", _FLOAT, "-+0123456789.")):
        for first in firsts:
            table.setdefault(first, []).append((f"tag:yaml.org,2002:{tag}", pattern))
    cls.yaml_implicit_resolvers = table  # type: ignore[attr-defined]


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_use_yaml12_numbers(_Loader)
_use_yaml12_numbers(_Dumper)
_Dumper.add_representer(tuple, lambda dumper, data: dumper.represent_list(list(data)))

_numbers = itertools.count()


@dataclass
class Tree:
    """A config and, for every place in it, the number of the YAML node that stood there.

    ``origins`` maps places to node numbers, ``anchors`` node numbers to the place where the node was
    written out. Places with the same number shared an anchor.
    """

    value: Any
    origins: dict[Place, int] = field(default_factory=dict)
    anchors: dict[int, Place] = field(default_factory=dict)

    def forget(self, place: Place) -> None:
        """Drop what is known about ``place`` and everything below it."""
        for known in [p for p in self.origins if p[: len(place)] == place]:
            del self.origins[known]

    def aliases(self, place: Place) -> list[Place]:
        """The places that aliased the node written out at ``place``."""
        number = self.origins.get(place)
        if number is None or self.anchors[number] != place:
            return []
        return [p for p, n in self.origins.items() if n == number and p != place]


def _mark(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


class _Builder:
    """Turns one document's nodes into plain values, once per place (aliases give copies)."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self.loader, self.name = loader, name
        self.tree = Tree(None)
        self.ids: dict[int, int] = {}
        self.open: set[int] = set()
        self.flat: set[int] = set()  # mappings whose << keys are already filled in

    def build(self, node: yaml.Node, place: Place = ()) -> Any:
        if len(self.tree.origins) > _MAX_NODES:
            raise ConfigError(f"{self.name}: more than {_MAX_NODES} values after its aliases are filled in.")
        if id(node) in self.open:
            raise ConfigError(f"{self.name}, {_mark(node)}: an alias stands inside its own anchor.")
        number = self.ids.setdefault(id(node), next(_numbers))
        self.tree.origins[place] = number
        self.tree.anchors.setdefault(number, place)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            if isinstance(node, yaml.SequenceNode):
                self._refuse_tag(node, "seq")
                return [self.build(child, (*place, i)) for i, child in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self.open.discard(id(node))

    def _refuse_tag(self, node: yaml.Node, plain: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{plain}":
            raise ConfigError(f"{self.name}, {_mark(node)}: the tag {node.tag} is refused; only plain YAML is read.")

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{self.name}, {_mark(node)}: {_short(error)}") from error

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[Any, Any]:
        self._refuse_tag(node, "map")
        if id(node) not in self.flat:
            self._refuse_repeats(node)
            self._flatten(node)
            self.flat.add(id(node))
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:  # keys merged in by << come first, so the own ones win
            key = self._key(key_node)
            if key in result:
                self.tree.forget((*place, key))
            result[key] = self.build(value_node, (*place, key))
        return result

    def _refuse_repeats(self, node: yaml.MappingNode) -> None:
        first: dict[Any, yaml.Node] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self._key(key_node)
            if key in first:
                raise ConfigError(
                    f'{self.name}, {_mark(key_node)}: the key "{key}" stands twice in one mapping '
                    f"(first on {_mark(first[key])}). Keep one of them."
                )
            first[key] = key_node

    def _key(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{self.name}, {_mark(node)}: a key must be a plain word.")
        return self._scalar(node)

    def _flatten(self, node: yaml.MappingNode) -> None:
        try:
            self.loader.flatten_mapping(node)
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.name}, {_mark(node)}: {_short(error)}") from error


def _short(error: Exception) -> str:
    """A PyYAML error in one line, with its line number."""
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error)
    if "'\\t'" in str(text):
        text = "a tab stands where only spaces are allowed; indent with spaces"
    return f"{text} (line {mark.line + 1}, column {mark.column + 1})" if mark else " ".join(str(text).split())


def parse(text: str, name: str) -> Tree:
    """The tree of one YAML document; ``name`` stands in messages.

    Raises:
        ConfigError: not YAML, a repeated key, a tag that would build an object.
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not readable as YAML: {_short(error)}.") from error
    try:
        node = loader.get_single_node()
        builder = _Builder(loader, name)
        builder.tree.value = None if node is None else builder.build(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not readable as YAML: {_short(error)}.") from error
    finally:
        loader.dispose()
    return builder.tree


def merge(into: Tree, other: Tree, place: Place = (), source: Place | None = None) -> None:
    """Merge ``other`` over ``into``: mappings go into mappings, anything else replaces.

    A key that holds dots is a path when its first part is already there.
    """
    source = place if source is None else source
    target, value = at(into.value, place), at(other.value, source)
    for key, item in value.items():
        here: Place = (*place, key)
        if isinstance(key, str) and "." in key and key not in target and key.split(".")[0] in target:
            here = (*place, *key.split("."))
            make_room(into, here)
        parent = at(into.value, here[:-1])
        if isinstance(item, Mapping) and isinstance(parent.get(here[-1]), Mapping):
            merge(into, other, here, (*source, key))
        else:
            put(into, here, copy.deepcopy(item))
            _adopt(into, here, other, (*source, key))


def make_room(tree: Tree, place: Place) -> None:
    """Mappings on the way to ``place``, made where they are missing."""
    here = tree.value
    for depth, key in enumerate(place[:-1], 1):
        child = here.get(key) if isinstance(here, dict) else here[key]
        if child is None:
            put(tree, place[:depth], {})
        elif not isinstance(child, (dict, list)):
            raise ConfigError(f"{dotted(place)}: {dotted(place[:depth])} is {child!r}, which has no keys.")
        here = here[key]


def _adopt(into: Tree, here: Place, other: Tree, source: Place) -> None:
    depth = len(source)
    for known, number in other.origins.items():
        if known[:depth] == source:
            into.origins[here + known[depth:]] = number
            into.anchors.setdefault(number, other.anchors[number])


def at(value: Any, place: Place) -> Any:
    """The value at ``place``."""
    for key in place:
        value = value[key]
    return value


def put(tree: Tree, place: Place, value: Any) -> None:
    """Set the value at ``place`` and forget where the old one came from."""
    tree.forget(place)
    at(tree.value, place[:-1])[place[-1]] = value


def dotted(place: Place) -> str:
    return ".".join(str(key) for key in place)


def load_tree(path: str | Path, _open: tuple[Path, ...] = ()) -> Tree:
    """Read a config file and everything named by its ``_BASE_`` (a path or a list, relative to the file).

    Bases are merged in order, the file itself last.

    Raises:
        ConfigError: missing file, wrong extension, not YAML, not a mapping, bases that go in a circle.
    """
    file = Path(path).expanduser()
    _check_file(file)
    real = file.resolve()
    if real in _open:
        chain = " -> ".join(str(p) for p in (*_open, real))
        raise ConfigError(f"_BASE_ goes in a circle: {chain}.")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'cannot read the config "{file}": {error}. Expected a UTF-8 text file.') from error
    own = parse(text, str(file))
    if not isinstance(own.value, dict):
        kind = "empty" if own.value is None else f"a {type(own.value).__name__}"
        raise ConfigError(f"{file}: expected sections such as Global and Architecture, the file is {kind}.")
    bases = own.value.pop("_BASE_", None)
    own.forget(("_BASE_",))
    if bases is None:
        return own
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise ConfigError(f"{file}: _BASE_ must be a path or a list of paths, got {bases!r}.")
    result = Tree({})
    for base in bases:
        target = Path(base).expanduser()
        merge(result, load_tree(target if target.is_absolute() else file.parent / target, (*_open, real)))
    merge(result, own)
    return result


def _check_file(file: Path) -> None:
    if file.suffix.lower() not in (".yml", ".yaml"):
        raise ConfigError(f'a config file ends in .yml or .yaml, got "{file}". Give one with -c PATH.')
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*.y*ml"))[:8] if file.parent.is_dir() else []
        hint = f" In that directory: {', '.join(near)}." if near else ""
        close = nearest(file.name, (p.name for p in file.parent.glob("*.y*ml"))) if near else ""
        hint += close if "Did you mean" in close else ""
        raise ConfigError(
            f'config file "{file}" not found (working directory: {Path.cwd()}).{hint} '
            "Check the path after -c or _BASE_; ready-made configs stand in configs/rec/."
        )


def dump(value: Any) -> str:
    """Block-style YAML that ``parse`` reads back to an equal value, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=120)
