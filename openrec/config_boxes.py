"""Does a loss that wants boxes of the characters get them?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def box_problems(config: Mapping[str, Any], loss: Mapping[str, Any]) -> list[str]:
    """A loss that compares boxes needs them, and one that does not needs a detector to start from."""
    mode, options = loss.get("mode", "det"), config["Global"]
    started = options.get("pretrained_model") or options.get("checkpoints")
    if mode == "ctc":
        if started or loss.get("allow_scratch"):
            return []
        return [
            "Loss.mode: ctc tunes a detector that finds characters already. Set Global.pretrained_model to one (of "
            "configs/rec/dino/dino_det.yml), or Loss.allow_scratch: True."
        ]
    boxes = []
    for op in config["Train"]["dataset"]["transforms"]:
        ((name, arguments),) = op.items() if isinstance(op, Mapping) else ((op, None),)
        boxes += [(arguments or {}).get("boxes", "required")] if name == "CharDetLabelEncode" else []
    if boxes and boxes[0] != "none":
        return []
    found = "CharDetLabelEncode has boxes: none" if boxes else "no CharDetLabelEncode makes any"
    return [f"Loss.mode: {mode} needs boxes of the characters, but in Train {found}. Use {{CharDetLabelEncode: }}."]
