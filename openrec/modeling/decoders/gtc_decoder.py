"""GTC: a guiding decoder teaches the encoder, a CTC decoder beside it reads.

Hu et al., "GTC: Guided Training of CTC", AAAI 2020; in SVTRv2 (Du et al., ICCV 2025) the guide is SMTR.
State-dict names are OpenOCR's (https://github.com/Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from openrec import registry
from openrec.errors import ConfigError
from openrec.modeling.layers import flatten_map


class GTCDecoder(nn.Module):
    """``[B, C, H, W]`` -> ``{"gtc_pred": ..., "ctc_pred": ...}``, or the CTC prediction alone.

    Args:
        gtc_decoder, ctc_decoder: configs of the two decoders.
        detach: the CTC branch does not train the encoder.
        infer_gtc: True builds both, in training and in evaluation; False builds only the CTC decoder, for a
            model that is no longer trained.
        out_channels: classes: ``[guide, ctc]`` with ``infer_gtc``, else a number.

    Raises:
        ConfigError: ``out_channels`` of the other form; training without the guide.
    """

    needs = "2d"
    nested = {"gtc_decoder": "decoder", "ctc_decoder": "decoder"}

    def __init__(
        self,
        in_channels: int,
        gtc_decoder: Mapping[str, Any],
        ctc_decoder: Mapping[str, Any],
        detach: bool = True,
        infer_gtc: bool = False,
        out_channels: int | Sequence[int] = 0,
    ):
        super().__init__()
        self.detach, self.infer_gtc = detach, infer_gtc
        where, ctc_classes = "Architecture.Decoder", out_channels
        if infer_gtc:
            if isinstance(out_channels, int) or len(out_channels) != 2:
                raise ConfigError(
                    f"{where}: with infer_gtc: True, GTCDecoder needs out_channels [guide, ctc], got {out_channels}. "
                    "PostProcess: GTCLabelDecode gives both."
                )
            guide_classes, ctc_classes = out_channels
            self.gtc_decoder = registry.build(
                "decoder", gtc_decoder, f"{where}.gtc_decoder", in_channels=in_channels, out_channels=guide_classes
            )
        elif not isinstance(out_channels, int):
            raise ConfigError(
                f"{where}: with infer_gtc: False, GTCDecoder has the CTC branch only and one number as out_channels, "
                f"got {list(out_channels)}. Use PostProcess: CTCLabelDecode, or set infer_gtc: True."
            )
        self.ctc_decoder = registry.build(
            "decoder", ctc_decoder, f"{where}.ctc_decoder", in_channels=in_channels, out_channels=ctc_classes
        )

    def forward(self, x: Tensor, data: Sequence[Any] | None = None) -> Any:
        if self.training and not self.infer_gtc:
            raise ConfigError(
                "GTCDecoder was built with infer_gtc: False, that is without its guide, and cannot be trained. "
                "Set Architecture.Decoder.infer_gtc: True (and out_channels from GTCLabelDecode) to train."
            )
        ctc_pred = self.ctc_decoder(_ctc_input(self.ctc_decoder, x.detach() if self.detach else x), data=data)
        if not self.infer_gtc:
            return ctc_pred
        guide_input = flatten_map(x) if self.gtc_decoder.needs == "seq" else x
        return {"gtc_pred": self.gtc_decoder(guide_input, data=data), "ctc_pred": ctc_pred}

    def map_characters(
        self, weights: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str], prefix: str = ""
    ) -> dict[str, Tensor]:
        """See ``map_rows``; for the CTC branch alone."""
        ctc: Any = self.ctc_decoder
        return ctc.map_characters(weights, theirs, ours, f"{prefix}ctc_decoder.")


def _ctc_input(decoder: nn.Module, x: Tensor) -> Tensor:
    """The map, or for a plain CTC head its mean over the height, ``[B, W, C]``."""
    return x.mean(2).transpose(1, 2) if decoder.needs == "seq" else x
