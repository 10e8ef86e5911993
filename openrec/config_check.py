"""Is a config one that can run? Answered from signatures alone, before any data is read.

``check_config`` collects every problem it finds into one ``ConfigError``: unknown sections, names and
keys (with the nearest match), missing ones, values of the wrong kind (``config_kinds``), transform lists, and parts
that do not fit together (``config_fit``, ``config_image``, ``config_boxes``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrec import config_schema as schema
from openrec import registry
from openrec.config_charset import resolve_charset
from openrec.config_fit import family_problems, fit_problems
from openrec.config_kinds import named
from openrec.config_schema import op_parts
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
    for name in schema.data_sections(mode):
        if isinstance(config.get(name), Mapping):
            problems += _data(config[name], name)
    if isinstance(config.get("Export"), Mapping):
        problems += _keys(config["Export"], schema.EXPORT, "Export")
    problems += family_problems(config, mode)
    if not problems:  # what parts need of each other can be asked of whole parts only
        problems += fit_problems(config, mode)
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
    name, arguments = op_parts(ops[-1])
    if name != "KeepKeys":
        problems.append(f"{where}.transforms: the last one must be KeepKeys, which makes the list that the model gets.")
    elif isinstance(arguments, Mapping) and (list(arguments.get("keep_keys") or ()) or ["image"])[0] != "image":
        problems.append(f"{where}.transforms: the first of KeepKeys.keep_keys must be image.")
    return problems


def _op(op: Any, where: str) -> list[str]:
    name, arguments = op_parts(op)
    if not isinstance(arguments, Mapping):
        example = "- DecodeImagePIL: {img_mode: RGB}"
        return [f"{where}: expected one name with its arguments, such as {example}, got {op!r}."]
    return named("op", {"name": name, **arguments}, f"{where}.{name}", shown=where)
