"""Is a config one that can run? Answered from signatures alone, before any data is read.

``check_config`` collects every problem it finds into one ``ConfigError``: unknown sections, names and
keys (with the nearest match), missing ones, values of the wrong kind, transform lists, and parts that
do not fit together (GTC heads, sub-string lengths).
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrec import config_schema as schema
from openrec import registry
from openrec.config_boxes import detector_problems
from openrec.config_charset import resolve_charset
from openrec.config_image import image_problems
from openrec.errors import ConfigError


def check_config(config: Mapping[str, Any], mode: str = "train") -> None:
    """Raise one ``ConfigError`` that lists everything wrong with ``config``.

    Args:
        config: what ``load_config`` returned.
        mode: ``train`` looks at all sections; ``eval`` at those that evaluation and inference use.
    """
    problems = _sections(config, mode)
    if not isinstance(config.get("Global"), Mapping):
        raise _error(config, problems)
    problems += _global(config["Global"], mode)
    if isinstance(config.get("Architecture"), Mapping):
        problems += _architecture(config["Architecture"])
    for name, section in (("PostProcess", "postprocess"), ("Metric", "metric")):
        if isinstance(config.get(name), Mapping):
            problems += named(section, config[name], name)
    if mode == "train":
        problems += _training(config)
    for name in ("Train", "Eval") if mode == "train" else ("Eval",):
        if isinstance(config.get(name), Mapping):
            problems += _data(config[name], name)
    if isinstance(config.get("Export"), Mapping):
        problems += _keys(config["Export"], schema.EXPORT, "Export")
    if not problems:
        problems += _fit(config, mode)
    problems += _characters(config)
    if problems:
        raise _error(config, problems)


def _error(config: Mapping[str, Any], problems: Sequence[str]) -> ConfigError:
    name = config.get("config") or "config"
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError(
        f"{name}: {count}\n" + "\n".join(f"  - {line}" for text in problems for line in text.split("\n"))
    )


def _characters(config: Mapping[str, Any]) -> list[str]:
    try:
        resolve_charset(config)
    except ConfigError as error:
        return [str(error)]
    return []


def _keys(config: Mapping[str, Any], keys: Mapping[str, schema.Key], where: str) -> list[str]:
    """Unknown keys, wrong kinds and missing keys of a section with a fixed table; warns about ignored ones."""
    unknown = [f"{where}.{k}: no such key.{registry.nearest(k, keys)}" for k in config if k not in keys]
    for name, key in keys.items():
        if key.ignored and config.get(name) is not None:
            registry.warn_once(where, name, f"{where}.{name} is accepted and has no effect: {key.meaning}.")
    return unknown + schema.problems_of(config, keys, where)


def _sections(config: Mapping[str, Any], mode: str) -> list[str]:
    problems = [
        f"{k}: no such section.{registry.nearest(k, schema.SECTIONS)}" for k in config if k not in schema.SECTIONS
    ]
    needed = schema.NEEDED_BY_MODE[mode]
    for name, key in schema.SECTIONS.items():
        value = config.get(name)
        test, wording = schema.KINDS[key.kind]
        if value is None:
            if name in needed:
                action = "train" if mode == "train" else "evaluate"
                problems.append(f"{name}: missing. To {action}, a config needs it: {key.meaning}.")
        elif not test(value):
            problems.append(f"{name}: expected {wording}, got {value!r}.")
    return problems


def _global(section: Mapping[str, Any], mode: str) -> list[str]:
    keys = dict(schema.GLOBAL)
    if mode != "train" and "epoch_num" not in section:
        del keys["epoch_num"]
    problems = _keys(section, keys, "Global")
    for name in ("pretrained_model", "checkpoints"):
        path = section.get(name)
        file = Path(path).expanduser() if isinstance(path, str) and path else None
        near = sorted(p.name for p in (file if file.is_dir() else file.parent).glob("*.pth")) if file else []
        if file and not file.exists():
            problems.append(
                f'Global.{name}: "{path}" not found (working directory: {Path.cwd()}).'
                f"{registry.nearest(file.name, near[:20])} "
                "Correct the path, or set it to null to start from new weights."
            )
        elif file and file.is_dir():
            inside = f"give one of its files: {', '.join(near[:8])}" if near else "no .pth is in it"
            problems.append(f'Global.{name}: "{path}" is a directory; expected a checkpoint file, {inside}.')
    return problems


def _architecture(section: Mapping[str, Any]) -> list[str]:
    problems = _keys(section, schema.ARCHITECTURE, "Architecture")
    for name in ("Transform", "Encoder", "Decoder"):
        if isinstance(section.get(name), Mapping):
            problems += named(name.lower(), section[name], f"Architecture.{name}")
    return problems


def _training(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if isinstance(config.get("Loss"), Mapping):
        problems += named("loss", config["Loss"], "Loss")
    if isinstance(config.get("LRScheduler"), Mapping):
        problems += named("scheduler", config["LRScheduler"], "LRScheduler")
    if isinstance(config.get("Optimizer"), Mapping):
        problems += _optimizer(config["Optimizer"])
    return problems


def optimizer_names() -> list[str]:
    """The optimizers of torch."""
    import torch

    return sorted(
        n
        for n, c in vars(torch.optim).items()
        if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer
    )


def _optimizer(section: Mapping[str, Any]) -> list[str]:
    import torch

    problems = schema.problems_of(section, schema.OPTIMIZER_EXTRA, "Optimizer")
    name, lr = section.get("name"), section.get("lr")
    if isinstance(lr, (int, float)) and not isinstance(lr, bool) and not lr > 0:
        problems.append(f"Optimizer.lr: expected a positive number, got {lr!r}.")
    if not isinstance(name, str):
        return problems
    known = optimizer_names()
    if name not in known:
        return [*problems, f'Optimizer.name: torch.optim has no "{name}".{registry.nearest(name, known)}']
    parameters = registry.parameters(getattr(torch.optim, name))
    allowed = (set(parameters) - {"params"}) | set(schema.OPTIMIZER_EXTRA)
    for key, value in section.items():
        if key not in allowed:
            problems.append(f"Optimizer.{key}: {name} has no such key.{registry.nearest(key, allowed)}")
        elif key in parameters and key not in schema.OPTIMIZER_EXTRA:
            default = parameters[key].default
            if schema.quoted_number_hint(value) and not isinstance(default, str):
                problems.append(f"Optimizer.{key}: expected a number, got {value!r}{schema.quoted_number_hint(value)}.")
    return problems


# ---- data ------------------------------------------------------------------------------------------


def _data(section: Mapping[str, Any], where: str) -> list[str]:
    problems = _keys(section, schema.DATA, where)
    loader, dataset, sampler = section.get("loader"), section.get("dataset"), section.get("sampler")
    if isinstance(loader, Mapping):
        problems += _keys(loader, schema.LOADER, f"{where}.loader")
    if isinstance(dataset, Mapping):
        problems += _dataset(dataset, f"{where}.dataset")
    if isinstance(sampler, Mapping):
        problems += named("sampler", sampler, f"{where}.sampler")
        _warn_unused_beside_sampler(sampler, loader if isinstance(loader, Mapping) else {}, where)
    elif sampler is None and isinstance(loader, Mapping) and loader.get("batch_size_per_card") is None:
        problems.append(f"{where}.loader.batch_size_per_card: missing; it is needed where there is no sampler.")
    return problems


def _warn_unused_beside_sampler(sampler: Mapping[str, Any], loader: Mapping[str, Any], where: str) -> None:
    for key in ("batch_size_per_card", "drop_last"):
        if key in loader:
            at = f"{where}.loader"
            registry.warn_once(at, key, f"{at}.{key} has no effect: {where}.sampler makes the batches.")
    scales = sampler.get("scales")
    if sampler.get("name") == "RatioSampler" and isinstance(scales, Sequence) and len(scales) > 1:
        at = f"{where}.sampler"
        registry.warn_once(at, "scales", f"{at}.scales: RatioSampler uses the first of the {len(scales)} entries only.")


def _dataset(dataset: Mapping[str, Any], where: str) -> list[str]:
    ops = dataset.get("transforms")
    problems = named("dataset", {k: v for k, v in dataset.items() if k != "transforms"}, where)
    if not isinstance(ops, Sequence) or isinstance(ops, str) or not ops:
        example = "- KeepKeys: {keep_keys: [image, label, length]}"
        return [*problems, f"{where}.transforms: expected a list of transforms such as {example}, got {ops!r}."]
    for i, op in enumerate(ops):
        problems += _op(op, f"{where}.transforms.{i}")
    name, arguments = _op_parts(ops[-1])
    if name != "KeepKeys":
        problems.append(f"{where}.transforms: the last one must be KeepKeys, which makes the list that the model gets.")
    elif isinstance(arguments, Mapping) and (list(arguments.get("keep_keys") or ()) or ["image"])[0] != "image":
        problems.append(f"{where}.transforms: the first of KeepKeys.keep_keys must be image.")
    return problems


def _op_parts(op: Any) -> tuple[Any, Any]:
    """Name and arguments of one entry of ``transforms``; a name alone is an op without arguments."""
    if isinstance(op, Mapping) and len(op) == 1:
        ((name, arguments),) = op.items()
        return name, {} if arguments is None else arguments
    return (op, {}) if isinstance(op, str) else (None, None)


def _op(op: Any, where: str) -> list[str]:
    name, arguments = _op_parts(op)
    if not isinstance(arguments, Mapping):
        example = "- DecodeImagePIL: {img_mode: RGB}"
        return [f"{where}: expected one name with its arguments, such as {example}, got {op!r}."]
    return named("op", {"name": name, **arguments}, f"{where}.{name}", shown=where)


# ---- named parts and the kinds of their arguments ---------------------------------------------------


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
    problems += _argument_kinds(target, plain, where)
    for key, inner in nested.items():
        if config.get(key) is not None:
            problems += named(inner, config[key], f"{where}.{key}")
    return problems


_WIDTH = re.compile(r"(dims?|hidden|heads|channels)$")  # numbers that size a tensor


def _argument_kinds(target: Any, config: Mapping[str, Any], where: str) -> list[str]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return []  # annotations that cannot be evaluated say nothing about kinds
    known = registry.parameters(target)
    problems = []
    for key, value in config.items():
        if key.endswith("_list") and isinstance(value, str):
            continue  # one path or file in place of a list of them
        if key in hints and key in known and not fits(value, hints[key]):
            problems.append(
                f"{where}.{key}: expected {_wording(hints[key])}, got {value!r}{schema.quoted_number_hint(value)}."
            )
        elif "drop" in key and hints.get(key) is float and not 0 <= value < 1:
            problems.append(f"{where}.{key}: expected a probability, at least 0 and below 1, got {value!r}.")
        elif _WIDTH.search(key) and hints.get(key) is int and value < 1:
            problems.append(f"{where}.{key}: expected a whole number of at least 1, got {value!r}.")
    return problems


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
        return "one of " + ", ".join(str(v) for v in typing.get_args(hint))
    base = typing.get_origin(hint) or hint
    if inspect.isclass(base) and issubclass(base, Mapping):
        return "a mapping"
    if inspect.isclass(base) and base not in _WORDS and issubclass(base, Iterable):
        inner = [h for h in typing.get_args(hint) if h is not ...]
        return f"a list of ({_wording(inner[0])})" if inner else "a list"
    return _WORDS.get(base, getattr(base, "__name__", str(base)))


# ---- parts that must fit together -------------------------------------------------------------------


def _fit(config: Mapping[str, Any], mode: str) -> list[str]:
    decoder, post = config["Architecture"]["Decoder"], config["PostProcess"]
    metric, loss = config["Metric"], config.get("Loss") or {}
    is_gtc, gtc_post = decoder["name"] == "GTCDecoder", post["name"] == "GTCLabelDecode"
    both = is_gtc and bool(decoder.get("infer_gtc", False))
    problems = []
    if both and not gtc_post:
        problems.append(
            f"PostProcess.name: Architecture.Decoder has infer_gtc: True and gives two predictions, which "
            f"GTCLabelDecode reads, not {post['name']}."
        )
    if is_gtc and not both and gtc_post:
        problems.append(
            "PostProcess.name: GTCLabelDecode needs two predictions, but Architecture.Decoder.infer_gtc is False: "
            "set infer_gtc: True, or use CTCLabelDecode for the CTC branch alone."
        )
    if not is_gtc and gtc_post:
        problems.append(f"PostProcess.name: GTCLabelDecode goes with GTCDecoder, not with {decoder['name']}.")
    if (metric["name"] == "RecGTCMetric") != (gtc_post and not post.get("only_gtc", False)):
        problems.append(
            f"Metric.name: {metric['name']} does not go with PostProcess {post['name']}: RecGTCMetric scores the "
            "pair of results of GTCLabelDecode, the other metrics one result."
        )
    if mode == "train":
        problems += _fit_training(config, decoder, loss, is_gtc, both)
    problems += _fit_family(config, mode) + _fit_channels(config, mode)
    return problems + detector_problems(config, mode) + image_problems(config, mode)


def _fit_training(config: Mapping[str, Any], decoder: Any, loss: Any, is_gtc: bool, both: bool) -> list[str]:
    problems = []
    if is_gtc and not both:
        problems.append(
            "Architecture.Decoder.infer_gtc: False builds the CTC branch alone, which is for evaluation and "
            "deployment. Set infer_gtc: True to train."
        )
    if is_gtc != (loss["name"] == "GTCLoss"):
        problems.append(
            f"Loss.name: {loss['name']} does not go with {decoder['name']}; GTCLoss and GTCDecoder belong together."
        )
    guide = decoder.get("svtr_encoder") or {}
    if decoder["name"] == "CTCDecoder" and guide.get("use_guide"):
        registry.warn_once(
            "Architecture.Decoder",
            "use_guide",
            "Architecture.Decoder.svtr_encoder.use_guide: True detaches the encoder's features, and no other "
            "branch trains it: the encoder keeps its weights. Set use_guide: False to train all of the model.",
        )
    return problems + _fit_sub_strings(config, decoder)


# How a head writes a text down decides its loss, its labels and how its results are read.
_FAMILIES: dict[str, dict[str, tuple[str, ...]]] = {
    "ctc": {
        "decoder": ("CTCDecoder", "RCTCDecoder"),
        "loss": ("CTCLoss",),
        "postprocess": ("CTCLabelDecode",),
        "op": ("CTCLabelEncode",),
    },
    "ar": {
        "decoder": (
            "ASTERDecoder", "DRAWAttnDecoder", "NRTRDecoder", "SoftAttnDecoder", "True2DDecoder",
        ),
        "loss": ("ARLoss",),
        "postprocess": ("ARLabelDecode", "NRTRLabelDecode"),
        "op": ("ARLabelEncode",),
    },
    "hard": {
        "decoder": ("HardAttnDecoder",),
        "loss": ("HardAttnLoss",),
        "postprocess": ("ARLabelDecode", "NRTRLabelDecode"),
        "op": ("ARLabelEncode",),
    },
    "smtr": {
        "decoder": ("SMTRDecoder",),
        "loss": ("SMTRLoss",),
        "postprocess": ("SMTRLabelDecode",),
        "op": ("SMTRLabelEncode",),
    },
}  # fmt: skip


def _families(section: str, name: str) -> list[str]:
    return [family for family, parts in _FAMILIES.items() if name in parts[section]]


def _fit_family(config: Mapping[str, Any], mode: str) -> list[str]:
    """Loss, results and labels of a head of a known family; parts of no family (GTC, own ones) go with anything."""
    decoder = config["Architecture"]["Decoder"]["name"]
    family = next(iter(_families("decoder", decoder)), None)
    if family is None:
        return []
    data = ("Train", "Eval") if mode == "train" else ("Eval",)
    given = [("PostProcess.name", "postprocess", config["PostProcess"]["name"])]
    given += [("Loss.name", "loss", config["Loss"]["name"])] if mode == "train" else []
    for name in data:
        ops = ((config.get(name) or {}).get("dataset") or {}).get("transforms") or []
        given += [(f"{name}.dataset.transforms.{i}", "op", str(_op_parts(op)[0])) for i, op in enumerate(ops)]
    problems = [
        f"{where}: {name} does not go with {decoder}; use {' or '.join(_FAMILIES[family][section])}."
        for where, section, name in given
        if _families(section, name) and family not in _families(section, name)
    ]
    return problems + [p for name in data for p in _fit_kept(config, name, family)]


def _fit_channels(config: Mapping[str, Any], mode: str) -> list[str]:
    """Pictures have three channels unless they are decoded as grey ones."""
    architecture = config["Architecture"]
    channels = architecture["Encoder"].get("in_channels", architecture.get("in_channels", 3))
    problems = []
    for name in ("Train", "Eval") if mode == "train" else ("Eval",):
        ops = ((config.get(name) or {}).get("dataset") or {}).get("transforms") or []
        grey = any((_op_parts(op)[1] or {}).get("img_mode") == "Gray" for op in ops)
        if channels != 3 and ops and not grey:
            problems.append(
                f"Architecture: in_channels is {channels}, but the pictures of {name} have 3. Leave it out."
            )
    return problems


def _fit_kept(config: Mapping[str, Any], where: str, family: str) -> list[str]:
    """The loss and the metric find label and length by their places in the batch."""
    ops = ((config.get(where) or {}).get("dataset") or {}).get("transforms")
    if family == "smtr" or not ops:
        return []
    wanted, kept = ["image", "label", "length"], list((_op_parts(ops[-1])[1] or {}).get("keep_keys") or ())
    if kept[:3] == wanted:
        return []
    return [f"{where}.dataset.transforms: KeepKeys.keep_keys must begin with [{', '.join(wanted)}], got {kept}."]


def _fit_sub_strings(config: Mapping[str, Any], decoder: Any) -> list[str]:
    """SMTR: the label encoder cuts sub-strings as long as the decoder reads."""
    inner = decoder.get("gtc_decoder", decoder) if decoder["name"] == "GTCDecoder" else decoder
    if inner.get("name") != "SMTRDecoder":
        return []
    length = inner.get("sub_str_len", 5)
    problems = []
    for i, op in enumerate(config["Train"]["dataset"]["transforms"]):
        name, arguments = _op_parts(op)
        label = arguments.get("gtc_label_encode", {"name": name, **arguments})
        if label.get("name") == "SMTRLabelEncode" and label.get("sub_str_len", 5) != length:
            problems.append(
                f"Train.dataset.transforms.{i}: SMTRLabelEncode cuts sub-strings of {label.get('sub_str_len', 5)} "
                f"characters, SMTRDecoder reads {length}: give both the same sub_str_len."
            )
    return problems
