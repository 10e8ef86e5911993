"""Do the parts of a config fit together? Answered from names and arguments, before any data is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openrec import registry
from openrec.config_boxes import box_problems
from openrec.config_image import image_problems, map_problems
from openrec.config_schema import data_sections, op_parts

# How a head writes a text down decides its loss, its labels and how its results are read.
FAMILIES: dict[str, dict[str, tuple[str, ...]]] = {
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
        "loss": ("ARLoss", "CELoss"),  # CELoss leaves special tokens out: it is ARLoss without smoothing
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
    "gtc": {
        "decoder": ("GTCDecoder",),
        "loss": ("GTCLoss",),
        "postprocess": ("GTCLabelDecode", "CTCLabelDecode"),
        "op": ("GTCLabelEncode", "CTCLabelEncode"),
    },
    "dino": {
        "decoder": ("DINODecoder",),
        "loss": ("DINOLoss",),
        "postprocess": ("DINOLabelDecode",),
        "op": ("CharDetLabelEncode",),
    },
    # Of decoders that are not part of this project.
    "ce": {"decoder": (), "loss": ("CELoss",), "postprocess": ("CELabelDecode",), "op": ("CELabelEncode",)},
    "ep": {"decoder": (), "loss": (), "postprocess": (), "op": ("EPLabelEncode",)},
}  # fmt: skip

# What the loss, the decoder and the metric find by their places in the batch.
_KEPT = ("image", "label", "length")
_KEPT_TO_DETECT = (*_KEPT, "boxes", "has_box")


def _at(config: Any, *path: str) -> Any:
    """What stands at ``path``; None where a part of it is missing or no mapping."""
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _transforms(config: Mapping[str, Any], section: str) -> Sequence[Any]:
    ops = _at(config, section, "dataset", "transforms")
    return ops if isinstance(ops, Sequence) and not isinstance(ops, str) else []


def _families(section: str, name: Any) -> list[str]:
    return [family for family, parts in FAMILIES.items() if name in parts[section]]


def _family(config: Mapping[str, Any]) -> str | None:
    return next(iter(_families("decoder", _at(config, "Architecture", "Decoder", "name"))), None)


def family_problems(config: Mapping[str, Any], mode: str) -> list[str]:
    """Loss, results and labels of another family than the decoder's; parts of no family go with anything.

    Reads names alone, so that a wrong one is told also where the arguments it came with are wrong.
    """
    family, decoder = _family(config), _at(config, "Architecture", "Decoder", "name")
    if family is None:
        return []
    given = [("PostProcess.name", "postprocess", _at(config, "PostProcess", "name"))]
    given += [("Loss.name", "loss", _at(config, "Loss", "name"))] if mode == "train" else []
    for name in data_sections(mode):
        given += [
            (f"{name}.dataset.transforms.{i}", "op", op_parts(op)[0]) for i, op in enumerate(_transforms(config, name))
        ]
    return [
        f"{where}: {name} does not go with {decoder}; use {' or '.join(FAMILIES[family][section])}."
        for where, section, name in given
        if _families(section, name) and family not in _families(section, name)
    ]


def fit_problems(config: Mapping[str, Any], mode: str) -> list[str]:
    """Problems of parts whose names and arguments are right one by one."""
    problems = _fit_branches(config, mode)
    for name in data_sections(mode):
        problems += _fit_kept(config, name) + _fit_channels(config, name) + _fit_resizes(config, name)
    if mode == "train":
        problems += _fit_lengths(config) + _fit_sub_strings(config) + _fit_penalty(config)
        problems += box_problems(config) if config["Loss"]["name"] == "DINOLoss" else []
        _warn_of_decoders(config)
    return problems + image_problems(config, mode) + map_problems(config, mode)


def _fit_branches(config: Mapping[str, Any], mode: str) -> list[str]:
    """GTC: two branches in training, one or two afterwards; who reads and scores both?"""
    decoder, post, metric = config["Architecture"]["Decoder"], config["PostProcess"], config["Metric"]
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
    if is_gtc and not both and mode == "train":
        problems.append(
            "Architecture.Decoder.infer_gtc: False builds the CTC branch alone, which is for evaluation and "
            "deployment. Set infer_gtc: True to train."
        )
    if (metric["name"] == "RecGTCMetric") != (gtc_post and not post.get("only_gtc", False)):
        problems.append(
            f"Metric.name: {metric['name']} does not go with PostProcess {post['name']}: RecGTCMetric scores the "
            "pair of results of GTCLabelDecode, the other metrics one result."
        )
    return problems


def _fit_kept(config: Mapping[str, Any], where: str) -> list[str]:
    """The loss and the metric find label and length by their places in the batch."""
    family, ops = _family(config), _transforms(config, where)
    if family in (None, "smtr", "gtc") or not ops:
        return []
    wanted = list(_KEPT_TO_DETECT if family == "dino" and where == "Train" else _KEPT)
    kept = list((op_parts(ops[-1])[1] or {}).get("keep_keys") or ())
    if kept[: len(wanted)] == wanted:
        return []
    return [f"{where}.dataset.transforms: KeepKeys.keep_keys must begin with [{', '.join(wanted)}], got {kept}."]


def _fit_channels(config: Mapping[str, Any], where: str) -> list[str]:
    """Pictures have three channels unless they are decoded as grey ones."""
    architecture, ops = config["Architecture"], _transforms(config, where)
    channels = architecture["Encoder"].get("in_channels", architecture.get("in_channels", 3))
    grey = any((op_parts(op)[1] or {}).get("img_mode") == "Gray" for op in ops)
    if channels == 3 or not ops or grey:
        return []
    return [f"Architecture: in_channels is {channels}, but the pictures of {where} have 3. Leave it out."]


def _fit_resizes(config: Mapping[str, Any], where: str) -> list[str]:
    """A data set that resizes by bucket wants pictures, not what a resize to one size made of them."""
    dataset = _at(config, where, "dataset") or {}
    if not dataset.get("by_ratio"):
        return []
    return [
        f"{where}.dataset.transforms.{i}: {name} gives all images one size, but by_ratio: True gives each that of its "
        f"bucket. Leave {name} out, or set by_ratio: False."
        for i, (name, _) in enumerate(map(op_parts, _transforms(config, where)))
        if name in registry.TABLE["op"] and name.endswith("Resize")
    ]


def _readers(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The decoder, and the one inside it that guides it, with their places."""
    decoder, where = config["Architecture"]["Decoder"], "Architecture.Decoder"
    inner = decoder.get("gtc_decoder")
    return [(where, decoder), *([(f"{where}.gtc_decoder", inner)] if inner else [])]


def _fit_lengths(config: Mapping[str, Any]) -> list[str]:
    """A decoder has to be able to write down every label that it learns."""
    longest, problems = _longest(config), []
    for where, decoder in _readers(config):
        known = registry.parameters(registry.resolve("decoder", decoder["name"]))
        most = decoder.get("max_len", known["max_len"].default) if "max_len" in known else None
        if most is not None and most < longest:
            problems.append(
                f"{where}.max_len: {decoder['name']} reads at most {most} characters, but it would learn from texts of "
                f"up to {longest} (max_text_length). Set max_len: {longest}, or lower Global.max_text_length."
            )
    return problems


def _longest(config: Mapping[str, Any]) -> int:
    """Characters of the longest text that the label encoder lets through: what its own entry says wins."""
    length = int(config["Global"]["max_text_length"])
    for op in config["Train"]["dataset"]["transforms"]:
        arguments = op_parts(op)[1]
        length = arguments.get("max_text_length", length)
        length = min(length, arguments.get("gtc_label_encode", {}).get("max_text_length", length))
    return length


def _fit_sub_strings(config: Mapping[str, Any]) -> list[str]:
    """SMTR: the label encoder cuts sub-strings as long as the decoder reads."""
    inner = _readers(config)[-1][1]
    if inner.get("name") != "SMTRDecoder":
        return []
    length = inner.get("sub_str_len", 5)
    problems = []
    for i, op in enumerate(config["Train"]["dataset"]["transforms"]):
        name, arguments = op_parts(op)
        label = arguments.get("gtc_label_encode", {"name": name, **arguments})
        if label.get("name") == "SMTRLabelEncode" and label.get("sub_str_len", 5) != length:
            problems.append(
                f"Train.dataset.transforms.{i}: SMTRLabelEncode cuts sub-strings of {label.get('sub_str_len', 5)} "
                f"characters, SMTRDecoder reads {length}: give both the same sub_str_len."
            )
    return problems


def _fit_penalty(config: Mapping[str, Any]) -> list[str]:
    """A decoder that adds a penalty to its logits needs a loss that takes one."""
    asked, loss = config["Architecture"]["Decoder"].get("doubly_stochastic"), config["Loss"]["name"]
    if not asked or loss != "CELoss":
        return []
    return [
        f"Loss.name: {loss} does not take the penalty of Architecture.Decoder.doubly_stochastic: {asked}. Use ARLoss "
        "(with label_smoothing: 0 it is the same loss), or leave doubly_stochastic out."
    ]


def _warn_of_decoders(config: Mapping[str, Any]) -> None:
    """Arguments that make sense, but hardly what they lead to."""
    decoder, epochs = config["Architecture"]["Decoder"], int(config["Global"]["epoch_num"])
    where = "Architecture.Decoder"
    if decoder["name"] == "CTCDecoder" and (decoder.get("svtr_encoder") or {}).get("use_guide"):
        registry.warn_once(
            where,
            "use_guide",
            f"{where}.svtr_encoder.use_guide: True detaches the encoder's features, and no other "
            "branch trains it: the encoder keeps its weights. Set use_guide: False to train all of the model.",
        )
    if decoder["name"] == "HardAttnDecoder" and decoder.get("estimator") != "soft":
        known = registry.parameters(registry.resolve("decoder", "HardAttnDecoder"))
        soft = decoder.get("warm_start_epochs", known["warm_start_epochs"].default)
        if soft >= epochs:
            registry.warn_once(
                where,
                "warm_start_epochs",
                f"{where}.warm_start_epochs: the first {soft} epochs are read softly and the run has {epochs} "
                "(Global.epoch_num): no place is ever drawn. Lower warm_start_epochs, or train longer.",
            )
