"""The recogniser: transform -> encoder -> decoder, with a check that their ranks fit.

The children's names (``transform``, ``encoder``, ``decoder``) are the prefixes of every weight in a checkpoint, as in
OpenOCR (Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.encoders import build_encoder
from openrec.modeling.layers import flatten_map
from openrec.modeling.record import record
from openrec.modeling.transforms import build_transform
from openrec.registry import parameters


class BaseRecognizer(nn.Module):
    """A scene-text recogniser.

    Args:
        transform: image -> image, or ``None``.
        encoder: image -> features; tells ``out_channels`` and ``out_rank`` (4: map, 3: sequence).
        decoder: features -> predictions; tells ``needs`` ('2d', 'seq' or 'any'). One that wants a sequence gets a
            map row by row, or averaged over its height when it sets ``pool_h``.
        use_wd: ``False`` empties ``no_weight_decay()``.

    Raises:
        ConfigError: the decoder needs a map and the encoder gives a sequence.
    """

    transform: nn.Module
    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        transform: nn.Module | None = None,
        use_wd: bool = True,
    ):
        super().__init__()
        self.use_wd = use_wd
        for name, child in (("transform", transform), ("encoder", encoder), ("decoder", decoder)):
            if child is not None:
                self.add_module(name, child)
        self.bridge = _bridge(encoder, decoder)

    def forward(self, x: Tensor, data: Sequence[Any] | None = None) -> Any:
        """Images [B, 3, H, W] -> predictions of the decoder; ``data``: the batch's labels, without the image."""
        if "transform" in self._modules:
            x = self.transform(x)
        if "encoder" in self._modules:
            x = self.encoder(x)
            record(self.encoder, "feature", x)
        if self.bridge == "pool":
            x = x.mean(2).transpose(1, 2)  # [B, W, C]
        elif self.bridge == "flatten":
            x = flatten_map(x)  # [B, H*W, C]
        return self.decoder(x, data=data) if "decoder" in self._modules else x

    def no_weight_decay(self) -> set[str]:
        """Parts of parameter names that weight decay leaves alone: those of all children together."""
        if not self.use_wd:
            return set()
        names: set[str] = set()
        for child in self.children():
            own = getattr(child, "no_weight_decay", None)
            names |= set(own()) if callable(own) else set()
        return names


def _bridge(encoder: nn.Module | None, decoder: nn.Module | None) -> str:
    """What turns the encoder's output into the decoder's input: nothing, 'flatten' or 'pool'."""
    rank, needs = getattr(encoder, "out_rank", None), getattr(decoder, "needs", "any")
    if rank == 3 and needs == "2d":
        raise ConfigError(
            f"Architecture: {type(decoder).__name__} needs a 2-D feature map, but {type(encoder).__name__} gives a "
            f"sequence. {_for_a_map(encoder)}"
        )
    if rank == 4 and needs == "seq":
        return "pool" if getattr(decoder, "pool_h", False) else "flatten"
    return ""


def _for_a_map(encoder: nn.Module | None) -> str:
    """How an encoder of this class is told to give a map."""
    known = parameters(type(encoder))
    keys = {"out_rank": "4", "feat2d": "True", "last_stage": "False"}
    told = [f"Set Encoder.{key}: {value}." for key, value in keys.items() if key in known]
    return " ".join(told) or "Take an encoder that gives a map, one with out_rank 4."


def _rectified_size(transform: nn.Module | None, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """``max_sz`` for an encoder that does not name it itself: what the transform gives it, whatever the data's size."""
    size = getattr(transform, "output_size", None)
    if size is None:
        return {}
    largest = encoder.get("max_sz")
    if largest is not None and any(given > most for given, most in zip(size, largest)):
        raise ConfigError(
            f"Architecture: {type(transform).__name__} gives images of {list(size)} (height, width), but "
            f"Encoder.max_sz is {list(largest)}. Set Encoder.max_sz: {list(size)}, or leave it out."
        )
    return {"max_sz": list(size)}


def build_model(architecture: Mapping[str, Any], **context: Any) -> BaseRecognizer:
    """Build ``Architecture`` of a config.

    Channels flow through: each part gets the ``out_channels`` of the part before it as its ``in_channels``;
    ``Decoder.out_channels`` (number of classes) is the config's own. ``context`` fills further parameters that the
    constructors name and the config leaves open.
    """
    from openrec.modeling.decoders import build_decoder  # decoders import layers, hence this package

    channels = architecture.get("in_channels", 3)
    transform = build_transform(architecture.get("Transform"), in_channels=channels, **context)
    channels = getattr(transform, "out_channels", channels)
    encoder = decoder = None
    if architecture.get("Encoder"):
        size = _rectified_size(transform, architecture["Encoder"])
        encoder = build_encoder(architecture["Encoder"], **{"in_channels": channels, **size, **context})
        channels = encoder.out_channels
    if architecture.get("Decoder"):
        decoder = build_decoder({"in_channels": channels, **context, **architecture["Decoder"]})
    return BaseRecognizer(
        encoder=encoder, decoder=decoder, transform=transform, use_wd=architecture.get("use_wd", True)
    )
