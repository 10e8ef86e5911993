#!/usr/bin/env python3
"""Write docs/configuration.md from the constructors and the key tables: what a config may hold, and nothing else.

python docs/gen_config.py           write the page
python docs/gen_config.py --check   say whether it is up to date (status 1 if not)
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrec import config_schema as schema
from openrec import registry

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

Every key that a YAML may hold. This page is written by `docs/gen_config.py` from the constructors and from
`openrec/config_schema.py`; a test keeps it up to date. A key that is not here is refused before any data is read, with
the nearest match.

* `_BASE_: path.yml` (or a list) at the top of a file takes everything from another one; mappings are merged, lists
  replaced.
* `-o Section.key=value` on the command line changes one value; elements of lists are addressed by number.
* *filled in* means: the program gives the value when the YAML does not.

"""
# section of the registry -> heading, where it stands in a YAML
SECTIONS = {
    "transform": ("Transforms", "Architecture.Transform"),
    "encoder": ("Encoders", "Architecture.Encoder"),
    "decoder": ("Decoders", "Architecture.Decoder"),
    "loss": ("Losses", "Loss"),
    "postprocess": ("Post-processing", "PostProcess"),
    "metric": ("Metrics", "Metric"),
    "dataset": ("Data sets", "Train.dataset, Eval.dataset"),
    "sampler": ("Samplers", "Train.sampler, Eval.sampler"),
    "op": ("Operators of a data set's `transforms`", "Train.dataset.transforms, Eval.dataset.transforms"),
    "scheduler": ("Learning-rate schedules", "LRScheduler"),
}
# meaning of keys that many constructors share and whose docstrings do not repeat it
COMMON: dict[str, str] = {
    "time_step": "columns of the sequence that comes in",
    "stream": "a batch is one line cut into overlapping windows",
    "with_ratio": "also numbers per text length and per aspect ratio",
    "real_share": "share of the samples that come from `real`",
    "step2_epoch": "epochs until the second phase, with the constant rate 1e-5",
    "neigh": "keys from a neighbourhood of so many cells in height and width, odd; 1: from the cell alone",
    "location": "let the scores know where the text has been looked at so far",
    "gate": "scale what is seen by a sigmoid of the state",
    "glimpses": "looks per step, each from the state plus what the one before saw",
    "vis_seq": "number of tokens where `ds` is false",
    "grid": "rows and columns of the reading grid",
    "in_channels": "channels that come in; the model fills it in",
    "warmup_in_steps": "count `warmup_epoch` in steps instead of epochs",
    "map_size": "rows and columns of the encoder's map",
    "max_size": "most rows and columns of the encoder's map",
    "qkv_bias": "bias in the projections to query, key and value",
    "mlp_ratio": "hidden width of the feed-forward, in widths of the block",
    "dropout": "dropout",
    "use_pos_embed": "add a learned position table",
    "qk_scale": "factor of the attention logits; null: 1 / sqrt(width of a head)",
    "main_indicator": "the number that decides which checkpoint is best",
    "gamma": "factor of each decrease",
    "eps": "of the norms",
    "charset": "the characters of the run; filled in, never written in a YAML",
    "attn_dim": "width in which queries and keys are compared",
    "zero_infinity": "a label that is longer than the prediction counts as 0",
    "warmup_steps": "steps of the warm-up",
    "step_size": "epochs between two decreases",
    "residual_dropout_rate": "dropout on the residual branches",
    "power": "exponent of the curve",
    "pope_bias": "bias in the stem's convolutions",
    "num_decoder_layers": "number of layers",
    "norm_layer": "kind of norm; not for YAMLs",
    "act": "kind of activation; not for YAMLs",
    "n_warmup_steps": "steps of the warm-up",
    "n_layers": "number of layers",
    "n_head": "attention heads",
    "milestones": "epochs at which the rate falls",
    "max_ratio": "widest picture, in heights",
    "max_len": "most characters that are read",
    "lr_end": "rate at the end",
    "eta_min": "lowest rate",
    "keep_keys": "what the model and the loss get, in this order; `image` comes first",
    "is_lower": "compare in lower case",
    "is_filter": "compare letters and digits only",
    "ignore_space": "leave spaces out of the comparison",
    "image_shape": "height and width in px",
    "gtc_weight": "weight of the guide's loss",
    "ctc_weight": "weight of the CTC loss",
    "drop_path_rate": "stochastic depth of the last block",
    "base_h": "height in px",
    "attention_dropout_rate": "dropout of the attention weights",
    "feat2d": "give a map instead of a sequence",
}
FIXED = (
    ("Sections of a file", schema.SECTIONS),
    ("Global", schema.GLOBAL),
    ("Architecture", schema.ARCHITECTURE),
    ("Optimizer", schema.OPTIMIZER_EXTRA),
    ("Train and Eval", schema.DATA),
    ("loader", schema.LOADER),
    ("Export", schema.EXPORT),
)


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for title, keys in FIXED:
        parts.append(f"## {title}\n\n")
        if title == "Optimizer":
            parts.append("`name` is a class of `torch.optim`, whose own arguments are keys too. Added to them:\n\n")
        parts.append(_fixed(keys))
    for section, (title, place) in SECTIONS.items():
        parts.append(f"## {title}\n\nIn `{'`, `'.join(place.split(', '))}`.\n\n")
        parts += [_part(section, name) for name in registry.names(section) if is_there(section, name)]
    return "".join(parts).rstrip() + "\n"


def is_there(section: str, name: str) -> bool:
    """Whether the module of a name is written yet."""
    return importlib.util.find_spec(registry.TABLE[section][name].split(":")[0]) is not None


def _fixed(keys: Mapping[str, schema.Key]) -> str:
    rows = []
    for name, key in keys.items():
        default = "**needed**" if key.default is schema.REQUIRED else f"`{_plain(key.default)}`"
        meaning = f"*accepted, without effect:* {key.meaning}" if key.ignored else key.meaning
        rows.append((f"`{name}`", _cell(schema.KINDS[key.kind][1]), default, _cell(meaning)))
    return _table(("key", "value", "default", "meaning"), rows)


def _part(section: str, name: str) -> str:
    target = registry.resolve(section, name)
    summary, arguments = docstring(target)
    hints = _hints(target)
    nested, aliases = getattr(target, "nested", {}), getattr(target, "key_aliases", {})
    arguments = _split(arguments, registry.parameters(target))
    rows = []
    for key, parameter in registry.parameters(target).items():
        if parameter.default is not parameter.empty:
            default = f"`{_plain(parameter.default)}`"
        else:
            default = "*filled in*" if key in schema.CONTEXT_KEYS else "**needed**"
        meaning = arguments.get(key) or COMMON.get(key, "")
        if not meaning and key in schema.GLOBAL:
            meaning = f"as `Global.{key}`, which fills it in"
        inner = nested.get(key)
        if inner is not None:
            meaning += f" (a config of {'a ' + inner if isinstance(inner, str) else '`' + inner.__name__ + '`'})"
        other = [a for a, p in aliases.items() if p == key]
        meaning += f" Also spelt `{'`, `'.join(other)}`." if other else ""
        rows.append((f"`{key}`", _cell(kind(hints.get(key))), default, _cell(meaning)))
    text = f"### {name}\n\n{summary}\n\n"
    text += _table(("key", "value", "default", "meaning"), rows) if rows else "No keys.\n\n"
    ignored = [k for k in getattr(target, "ignored_keys", ()) if k not in registry.parameters(target)]
    return text + (f"Accepted without effect: `{'`, `'.join(ignored)}`.\n\n" if ignored else "")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(row) for row in (head, ("---",) * len(head), *rows)]
    return "".join(f"| {line} |\n" for line in lines) + "\n"


def docstring(target: Any) -> tuple[str, dict[str, str]]:
    """First paragraph of a class or function, and ``{argument: meaning}`` of its ``Args:``."""
    own = target.__dict__.get("__doc__") if inspect.isclass(target) else target.__doc__
    text = inspect.cleandoc(own or "")
    summary = re.sub(r"\s+", " ", text.split("\n\n")[0]).replace("``", "`")
    arguments: dict[str, str] = {}
    for one in (text, inspect.cleandoc(getattr(target.__init__, "__doc__", "") or "")):
        arguments = {**_arguments(one), **arguments}
    for parent in target.__mro__[1:-1] if inspect.isclass(target) else ():  # what a subclass does not say again
        arguments = {**_arguments(inspect.cleandoc(parent.__dict__.get("__doc__") or "")), **arguments}
    return summary, arguments


def _arguments(text: str) -> dict[str, str]:
    block = re.search(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)+)", text, re.M)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in block[1].splitlines() if block else ():
        start = re.match(r"    (\w+(?:, \w+)*)(?: \([^)]*\))?:(.*)$", line)
        if start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2].strip())
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: meaning.replace("``", "`") for name, meaning in found.items()}


def _split(arguments: dict[str, str], known: Mapping[str, Any]) -> dict[str, str]:
    """Meanings that hold another key's meaning (``of the norms. feat2d: return a map``) become two."""
    found: dict[str, str] = {}
    for name, meaning in arguments.items():
        parts = re.split(r"(?:^|(?<=[.;]) )((?:\w+, )*\w+): ", meaning)
        for names, text in zip([name, *parts[1::2]], [parts[0], *parts[2::2]]):
            if all(n in known for n in names.split(", ")):
                found |= {n: text for n in names.split(", ") if text and n not in found}
            else:
                found[name] = f"{found.get(name, '')} {names}: {text}"
    return found


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return {}


def kind(hint: Any) -> str:
    """An annotation in the words of a YAML."""
    words = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in words:
        return words[hint]
    if hint is None or hint is Any:
        return ""
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(kind, inner))))
    if origin is typing.Literal:
        return ", ".join(f"`{v}`" for v in inner)
    base = origin or hint
    name = getattr(base, "__name__", str(base))
    if inspect.isclass(base) and issubclass(base, Mapping):
        return "mapping"
    if name in ("Sequence", "list", "tuple", "Iterable"):
        several = [k for k in dict.fromkeys(kind(h) for h in inner if h is not ...) if k]
        return f"list of {' / '.join(f'({k})' if ' ' in k else k for k in several)}" if several else "list"
    return f"`{name}`"


def _plain(value: Any) -> str:
    if callable(value):
        return getattr(value, "__name__", repr(value))
    if isinstance(value, tuple):
        value = list(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '""' if value == "" else str(value)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", r"\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    a = parser.parse_args()
    text = page()
    if a.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("up to date" if same else f"{os.path.relpath(PAGE)} is old: python docs/gen_config.py")
        return int(not same)
    PAGE.write_text(text, encoding="utf-8")
    print(f"{os.path.relpath(PAGE)}: {text.count('| `')} keys")
    return 0


if __name__ == "__main__":
    sys.exit(main())
