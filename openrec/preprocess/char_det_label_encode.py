"""Labels of recognisers that detect characters: numbers and boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from openrec.charset import Charset
from openrec.errors import ConfigError, SampleError
from openrec.preprocess.label_encode import LabelEncoder

BOXES = ("required", "optional", "none", "uniform")
LEAST = 1e-3  # side of a box in parts of the image: a box cut off at the border still has an area


class CharDetLabelEncode(LabelEncoder):
    """``label [L]`` padded with -1, ``length``, ``boxes [L, 4]`` (cx, cy, w, h) in [0, 1], ``has_box``.

    Args:
        max_text_length, character_dict_path, use_space_char, charset: see ``LabelEncoder``.
        boxes: 'required': of every sample; 'optional': where the data set knows them; 'none': for CTC; 'uniform':
            where they are not known, equal parts of the width at full height, which suits straight text only.

    Boxes come from the data set under ``sample["boxes"]``, one for each character of the label, and move with the
    image through the resizing ops. Characters that the charset lacks lose theirs.

    Raises:
        SampleError: boxes are required and the sample has none.
    """

    kind = "ce"
    keeps_boxes = True

    def __init__(
        self,
        max_text_length: int,
        character_dict_path: str | None = None,
        use_space_char: bool = False,
        charset: Charset | None = None,
        boxes: str = "required",
    ):
        super().__init__(max_text_length, character_dict_path, use_space_char, charset)
        if boxes not in BOXES:
            raise ConfigError(f"CharDetLabelEncode.boxes: expected one of {', '.join(BOXES)}; got {boxes!r}.")
        self.boxes = boxes

    @property
    def wants_boxes(self) -> bool:
        """Whether the data set should hand boxes over."""
        return self.boxes != "none"

    @property
    def needs_boxes(self) -> bool:
        """Whether nothing can be learned without them."""
        return self.boxes == "required"

    def arrays(self, ids: list[int], sample: dict[str, Any]) -> dict[str, np.ndarray]:
        label = np.full(self.max_text_length, -1, np.int64)
        label[: len(ids)] = ids
        boxes = np.full((self.max_text_length, 4), 0.5, np.float32)
        found = self._boxes(sample, len(ids)) if self.wants_boxes else None
        if found is None and self.needs_boxes and sample.get("training", False):
            raise SampleError("the data set gives no boxes of the characters")
        if found is not None:
            boxes[: len(ids)] = found
        return {
            "label": label,
            "length": np.array(len(ids), np.int64),
            "boxes": boxes,
            "has_box": np.array(found is not None),
        }

    def _boxes(self, sample: dict[str, Any], count: int) -> np.ndarray | None:
        given = sample.get("boxes")
        if given is None:
            return _equal_parts(count, sample.get("valid_ratio", 1.0)) if self.boxes == "uniform" else None
        known = [character in self.charset for character in self.charset.normalize(sample["label"])]
        if len(known) != len(given) or sum(known) != count:
            return None  # normalising the text changed its length: which box belongs to whom is not known
        low = (given[known, :2] - given[known, 2:] / 2).clip(0, 1)
        high = (given[known, :2] + given[known, 2:] / 2).clip(0, 1)
        return np.concatenate(((low + high) / 2, (high - low).clip(LEAST)), 1)


def _equal_parts(count: int, width: float) -> np.ndarray:
    boxes = np.full((count, 4), 0.5, np.float32)
    boxes[:, 0], boxes[:, 2], boxes[:, 3] = (np.arange(count) + 0.5) / count * width, width / count, 1.0
    return boxes
