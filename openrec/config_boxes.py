"""Does a head that detects characters get what it needs: boxes of the characters, or weights that know them?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openrec import registry
from openrec.config_schema import op_parts

REPAIR = (
    "Use SyntheticWords, which knows where it writes; or learn from texts alone: Loss.mode: ctc with a detector as "
    "Global.pretrained_model and {CharDetLabelEncode: {boxes: none}}."
)


def box_problems(config: Mapping[str, Any]) -> list[str]:
    """Problems of ``DINOLoss`` with its training data: one that compares boxes needs them, and one that does not
    needs a detector to start from."""
    loss, options = config["Loss"], config["Global"]
    mode = loss.get("mode", "det")
    started = options.get("pretrained_model") or options.get("checkpoints")
    if mode == "ctc":
        if started or loss.get("allow_scratch"):
            return []
        return [
            "Loss.mode: ctc tunes a detector that finds characters already. Set Global.pretrained_model to one (of "
            "configs/rec/dino/dino_det.yml), or Loss.allow_scratch: True."
        ]
    dataset, wanted = config["Train"]["dataset"], _boxes(config["Train"]["dataset"]["transforms"])
    if wanted in (None, "none"):
        found = "CharDetLabelEncode has boxes: none" if wanted else "no CharDetLabelEncode makes any"
        return [f"Loss.mode: {mode} needs boxes of the characters, but in Train {found}. Use {{CharDetLabelEncode: }}."]
    if wanted == "uniform":
        return []
    if not getattr(registry.resolve("dataset", dataset["name"]), "gives_boxes", False):
        return [f"Loss.mode: {mode} needs boxes of the characters, which {dataset['name']} does not have. {REPAIR}"]
    if dataset.get("real") and (mode == "det" or wanted == "required"):
        return [
            "Train.dataset.real: nobody knows where the characters of photographed words are. Learn from their texts "
            "with Loss.mode: joint and {CharDetLabelEncode: {boxes: optional}}, or leave real out."
        ]
    return []


def _boxes(transforms: Any) -> str | None:
    """``boxes`` of the config's ``CharDetLabelEncode``; None without one."""
    for op in transforms:
        name, arguments = op_parts(op)
        if name == "CharDetLabelEncode":
            return str(arguments.get("boxes", "required"))
    return None
