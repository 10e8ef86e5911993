"""Names in a YAML become objects here, and only here.

``TABLE`` holds every name a config may use, section by section, as ``module:attribute``; the module
is imported when its name is first used. A new encoder is one file, one line in this table and one
YAML. Keys are checked against the constructor's own signature, so a constructor that names what it
accepts is also its documentation; a class may add

* ``ignored_keys``: keys accepted for compatibility and not used (one warning each),
* ``key_aliases``: ``{other spelling: parameter}``,
* ``nested``: ``{parameter: section or class}`` for parameters that are configs themselves.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from openrec.errors import ConfigError

logger = logging.getLogger("openrec")

_E, _D = "openrec.modeling.encoders.", "openrec.modeling.decoders."
_RATIO = "openrec.data.ratio_dataset:"
_RESIZE, _LABEL = "openrec.preprocess.resize:", "openrec.preprocess.label_encode:"
_POST, _LR = "openrec.postprocess.", "openrec.optimizer.schedulers:"

TABLE: dict[str, dict[str, str]] = {
    "transform": {
        "Aster_TPS": "openrec.modeling.transforms.aster_tps:Aster_TPS",
        "STN": "openrec.modeling.transforms.stn:STN",
        "TPS": "openrec.modeling.transforms.tps:TPS",
    },
    "encoder": {
        "DATEncoder": _E + "dat_encoder:DATEncoder",
        "SATRNEncoder": _E + "satrn:SATRNEncoder",
        "SVTRv2LNConvTwo33": _E + "svtrv2_lnconv_two33:SVTRv2LNConvTwo33",
        "SVTRv2Mamba": _E + "svtrv2_mamba:SVTRv2Mamba",
        "True2DEncoder": _E + "true2d:True2DEncoder",
    },
    "decoder": {
        "ASTERDecoder": _D + "aster_decoder:ASTERDecoder",
        "CTCDecoder": _D + "ctc_decoder:CTCDecoder",
        "DINODecoder": _D + "dino_decoder:DINODecoder",
        "DRAWAttnDecoder": _D + "draw_attn_decoder:DRAWAttnDecoder",
        "GTCDecoder": _D + "gtc_decoder:GTCDecoder",
        "HardAttnDecoder": _D + "hard_attn_decoder:HardAttnDecoder",
        "NRTRDecoder": _D + "nrtr_decoder:NRTRDecoder",
        "RCTCDecoder": _D + "rctc_decoder:RCTCDecoder",
        "SMTRDecoder": _D + "smtr_decoder:SMTRDecoder",
        "SoftAttnDecoder": _D + "soft_attn_decoder:SoftAttnDecoder",
        "True2DDecoder": _D + "true2d_decoder:True2DDecoder",
    },
    "loss": {
        "ARLoss": "openrec.losses.ar_loss:ARLoss",
        "CELoss": "openrec.losses.ce_loss:CELoss",
        "CTCLoss": "openrec.losses.ctc_loss:CTCLoss",
        "DINOLoss": "openrec.losses.dino_loss:DINOLoss",
        "GTCLoss": "openrec.losses.gtc_loss:GTCLoss",
        "HardAttnLoss": "openrec.losses.hard_attn_loss:HardAttnLoss",
        "SMTRLoss": "openrec.losses.smtr_loss:SMTRLoss",
    },
    "postprocess": {
        "ARLabelDecode": _POST + "ar_postprocess:ARLabelDecode",
        "CELabelDecode": _POST + "ce_postprocess:CELabelDecode",
        "CTCLabelDecode": _POST + "ctc_postprocess:CTCLabelDecode",
        "DINOLabelDecode": _POST + "dino_postprocess:DINOLabelDecode",
        "GTCLabelDecode": _POST + "gtc_postprocess:GTCLabelDecode",
        "NRTRLabelDecode": _POST + "ar_postprocess:NRTRLabelDecode",
        "SMTRLabelDecode": _POST + "smtr_postprocess:SMTRLabelDecode",
    },
    "metric": {
        "RecGTCMetric": "openrec.metrics.rec_metric_gtc:RecGTCMetric",
        "RecMetric": "openrec.metrics.rec_metric:RecMetric",
        "RecMetricLong": "openrec.metrics.rec_metric_long:RecMetricLong",
    },
    "dataset": {
        "LMDBDataSet": "openrec.data.lmdb_dataset:LMDBDataSet",
        "LMDBDataSetTest": "openrec.data.lmdb_dataset:LMDBDataSetTest",
        "MultiScaleDataSet": "openrec.data.multi_scale_dataset:MultiScaleDataSet",
        "RatioDataSet": _RATIO + "RatioDataSet",
        "RatioDataSetTest": _RATIO + "RatioDataSetTest",
        "RatioDataSetTVResize": _RATIO + "RatioDataSetTVResize",
        "RatioDataSetTVResizeTest": _RATIO + "RatioDataSetTVResizeTest",
        "SimpleDataSet": "openrec.data.simple_dataset:SimpleDataSet",
        "SyntheticWords": "openrec.data.synthetic:SyntheticWords",
    },
    "sampler": {
        "MultiScaleSampler": "openrec.data.samplers:MultiScaleSampler",
        "RatioSampler": "openrec.data.samplers:RatioSampler",
    },
    "op": {
        "ARLabelEncode": _LABEL + "ARLabelEncode",
        "CELabelEncode": _LABEL + "CELabelEncode",
        "CTCLabelEncode": _LABEL + "CTCLabelEncode",
        "CharDetLabelEncode": "openrec.preprocess.char_det_label_encode:CharDetLabelEncode",
        "CharErasing": "openrec.preprocess.char_erasing:CharErasing",
        "DecodeImage": "openrec.preprocess.decode:DecodeImage",
        "DecodeImagePIL": "openrec.preprocess.decode:DecodeImagePIL",
        "EPLabelEncode": _LABEL + "EPLabelEncode",
        "GTCLabelEncode": _LABEL + "GTCLabelEncode",
        "KeepKeys": "openrec.preprocess.keep_keys:KeepKeys",
        "PARSeqAug": "openrec.preprocess.parseq_aug:PARSeqAug",
        "PARSeqAugPIL": "openrec.preprocess.parseq_aug:PARSeqAugPIL",
        "RecDynamicResize": _RESIZE + "RecDynamicResize",
        "RecTVResize": _RESIZE + "RecTVResize",
        "SMTRLabelEncode": _LABEL + "SMTRLabelEncode",
        "SVTRResize": _RESIZE + "SVTRResize",
        "SliceResize": _RESIZE + "SliceResize",
        "SliceTVResize": _RESIZE + "SliceTVResize",
    },
    "scheduler": {
        "CdistNetLR": _LR + "CdistNetLR",
        "ConstLR": _LR + "ConstLR",
        "CosineAnnealingLR": _LR + "CosineAnnealingLR",
        "LinearLR": _LR + "LinearLR",
        "MultiStepLR": _LR + "MultiStepLR",
        "OneCycleLR": _LR + "OneCycleLR",
        "PolynomialLR": _LR + "PolynomialLR",
        "StepLR": _LR + "StepLR",
        "WarmupCosineLR": _LR + "WarmupCosineLR",
    },
}

# Keys that OpenOCR's YAMLs use with some class of a section and that its other classes swallow: a
# class that does not name one accepts it with one warning.
TOLERATED: dict[str, tuple[str, ...]] = {
    "dataset": (
        "data_dir_list", "data_dir", "label_file_list", "delimiter", "ratio_list", "ds_width", "padding",
        "padding_rand", "padding_doub", "base_shape", "base_h", "syn", "ceil", "filter_label", "ext_op_transform_idx",
    ),
    "sampler": (
        "scales", "first_bs", "fix_bs", "divided_factor", "is_training", "max_ratio", "max_bs", "seed", "ratio_wh",
        "max_w",
    ),
    "op": ("max_text_length", "character_dict_path", "use_space_char", "padding"),
    "postprocess": ("character_dict_path", "use_space_char", "with_ratio"),
    "metric": (
        "main_indicator", "is_filter", "is_lower", "ignore_space", "stream", "with_ratio", "max_len", "max_ratio",
    ),
    "encoder": ("local_k",),
    "decoder": ("max_len",),
}  # fmt: skip

_warned: set[tuple[str, str]] = set()


# Parameters that the program fills in: a misspelt one is recognised, but no list of keys offers them.
_FILLED_IN = frozenset({
    "charset", "epochs", "global_config", "in_channels", "is_training", "last_epoch", "lr", "mode", "optimizer",
    "out_channels", "step_each_epoch",
})  # fmt: skip


def nearest(word: str, known: Iterable[str], hidden: Iterable[str] = ()) -> str:
    """``' Did you mean "x"?'`` for the closest known word, or the list of all but ``hidden`` when none is close."""
    known = sorted(str(k) for k in known)
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(word).lower(), lower, n=1, cutoff=0.6)
    if not close:  # a part of exactly one name: SMTR for SMTRDecoder
        inside = [k for k in lower if len(str(word)) > 2 and str(word).lower() in k]
        close = inside if len(inside) == 1 else []
    if close:
        return f' Did you mean "{lower[close[0]]}"?'
    shown = [k for k in known if k not in set(hidden)]
    return f" Known: {', '.join(shown)}." if shown else ""


def names(section: str) -> list[str]:
    """All names a config may use in ``section``."""
    return sorted(TABLE[section])


def resolve(section: str, name: Any, where: str = "") -> Any:
    """The class (or function) called ``name``; ``ConfigError`` with the nearest match when there is none."""
    target = TABLE[section].get(name) if isinstance(name, str) else None
    if target is None:
        at = f"{where}: " if where else ""
        raise ConfigError(f'{at}no {section} is called "{name}".{nearest(str(name), TABLE[section])}')
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The named constructor parameters of a class, without ``self`` and catch-alls."""
    signature = inspect.signature(target)
    return {n: p for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def with_defaults(target: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` of a class, and its defaults for those that are not given."""
    return {name: p.default for name, p in parameters(target).items()} | dict(arguments)


def section_of(target: Any) -> str:
    """The section whose table holds ``target``, or an empty string."""
    path = f"{target.__module__}:{target.__qualname__}"
    return next((section for section, table in TABLE.items() if path in table.values()), "")


def _known_keys(target: Any) -> tuple[dict[str, inspect.Parameter], tuple[str, ...], dict[str, str]]:
    ignored = (*getattr(target, "ignored_keys", ()), *TOLERATED.get(section_of(target), ()))
    return parameters(target), ignored, dict(getattr(target, "key_aliases", {}))


def check_keys(target: Any, config: Mapping[str, Any], where: str, given: Iterable[str] = ()) -> list[str]:
    """Problems of ``config`` as arguments of ``target``: unknown keys, missing required ones, nested configs.

    Args:
        given: names of parameters that the caller will supply itself.
    """
    known, ignored, aliases = _known_keys(target)
    problems = []
    for key, value in config.items():
        if key == "name" and "name" not in known:
            continue
        if key in ignored and key not in known:
            warn_once(target.__name__, key, f"{where}.{key} is accepted and has no effect in {target.__name__}.")
            continue
        if aliases.get(key) in known:
            continue
        if key not in known:
            problems.append(
                f"{where}.{key}: {target.__name__} has no such key.{nearest(key, [*known, 'name'], _FILLED_IN)}"
            )
            continue
        inner = getattr(target, "nested", {}).get(key)
        if inner is not None and value is not None:
            # what a part is given (in_channels, ...) it can hand on to the parts inside it
            problems += check(inner, value, f"{where}.{key}", {*given, *known})
    present = set(config) | {aliases[k] for k in config if k in aliases} | set(given)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in present:
            problems.append(f"{where}.{name}: missing; {target.__name__} needs it.")
    return problems


def check(section: Any, config: Any, where: str, given: Iterable[str] = ()) -> list[str]:
    """Problems of a ``{name: ..., **arguments}`` mapping, without building anything."""
    if not isinstance(config, Mapping):
        return [f"{where}: expected a mapping with a name and its arguments, got {config!r}."]
    if isinstance(section, str):
        if "name" not in config:
            return [f"{where}.name: missing. Known: {', '.join(names(section))}."]
        try:
            section = resolve(section, config["name"], where)
        except ConfigError as error:
            return [str(error)]
    return check_keys(section, config, where, given)


def build(section: str, config: Mapping[str, Any], where: str = "", **context: Any) -> Any:
    """Build ``config['name']`` with the remaining keys as arguments.

    ``context`` fills parameters that the config leaves open (``in_channels``, ``charset``, ...) and
    is dropped where the constructor does not name it; what the config says wins.

    Raises:
        ConfigError: unknown name or key, missing argument; the message names the nearest match.
    """
    where = where or section.capitalize()
    if not isinstance(config, Mapping) or "name" not in config:
        raise ConfigError(f"{where}: expected a mapping with the key 'name', got {config!r}.")
    target = resolve(section, config["name"], where)
    arguments = {k: v for k, v in config.items() if k != "name"}
    return call(target, arguments, where, **context)


def call(target: Any, arguments: Mapping[str, Any] | None, where: str, **context: Any) -> Any:
    """``target(**arguments)`` with the checks of ``build`` for a class that is already known."""
    arguments = dict(arguments or {})
    known, ignored, aliases = _known_keys(target)
    problems = check_keys(target, arguments, where, given=context)
    if problems:
        raise ConfigError("\n".join(problems))
    kwargs = {k: v for k, v in context.items() if k in known}
    for key, value in arguments.items():
        if key in known or key not in ignored:
            kwargs[aliases.get(key, key) if key not in known else key] = value
    return target(**kwargs)


def warn_once(where: str, key: str, message: str) -> None:
    """Log ``message`` the first time this process meets ``(where, key)``; ``where`` is a place or a class."""
    if (where, key) not in _warned:
        _warned.add((where, key))
        logger.warning(message)
