"""Texts of both branches of a ``GTCDecoder``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openrec import registry
from openrec.charset import Charset
from openrec.errors import ConfigError
from openrec.postprocess.base import Decoded, LabelDecoder
from openrec.postprocess.ctc_postprocess import CTCLabelDecode


class GTCLabelDecode:
    """``{"gtc_pred", "ctc_pred"}`` -> ``[guide's result, CTC's result]``, each as its own post-processor gives it.

    Args:
        gtc_label_decode: config of the guide's post-processor.
        only_gtc: the guide's result alone.
        with_ratio: the batch ends with the ratio of each image, which is no label.
    """

    nested = {"gtc_label_decode": "postprocess"}

    def __init__(
        self,
        gtc_label_decode: Mapping[str, Any],
        character_dict_path: str | None = None,
        use_space_char: bool = False,
        only_gtc: bool = False,
        with_ratio: bool = False,
        charset: Charset | None = None,
    ):
        charset = charset if charset is not None else Charset.load(character_dict_path, use_space_char)
        self.charset, self.only_gtc, self.with_ratio = charset, only_gtc, with_ratio
        self.gtc_label_decode: LabelDecoder = registry.build(
            "postprocess", gtc_label_decode, "PostProcess.gtc_label_decode", charset=charset
        )
        self.ctc_label_decode = CTCLabelDecode(charset=charset)

    def get_character_num(self) -> list[int]:
        """``[guide, ctc]``"""
        return [self.gtc_label_decode.get_character_num(), self.ctc_label_decode.get_character_num()]

    def __call__(self, preds: Mapping[str, Any], batch: Sequence[Any] | None = None, torch_tensor: bool = True) -> Any:
        if batch is not None and self.with_ratio:
            batch = batch[:-1]
        gtc = self.gtc_label_decode(_branch(preds, "gtc"), batch[:-2] if batch is not None else None, torch_tensor)
        if self.only_gtc:
            return gtc
        ctc_batch = [None, batch[-2], batch[-1]] if batch is not None else None
        return [gtc, self.ctc_label_decode(_branch(preds, "ctc"), ctc_batch, torch_tensor)]

    def decode_detailed(self, preds: Any, branch: str = "ctc") -> list[Decoded]:
        """One result per image, of the branch ``ctc`` or ``gtc``."""
        decoder = self.gtc_label_decode if branch == "gtc" else self.ctc_label_decode
        return decoder.decode_detailed(_branch(preds, branch))


def _branch(preds: Any, name: str) -> Any:
    if isinstance(preds, Mapping):
        return preds[f"{name}_pred"]
    if name == "ctc":
        return preds  # GTCDecoder without its guide
    raise ConfigError(
        "GTCLabelDecode: expected predictions of both branches, got one. Set Architecture.Decoder.infer_gtc: True, or "
        "use PostProcess: CTCLabelDecode."
    )
