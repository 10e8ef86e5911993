"""Networks that look at a small copy of the image and tell the parameters of its warp.

``STNHead`` is ASTER's (Shi et al., PAMI 2019), ``LocalizationNetwork`` that of RARE (Shi et al., CVPR 2016); names of
weights as in OpenOCR (Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.layers import exact, guard

CHANNELS = (32, 64, 128, 256, 256, 256)
MODEL_NAMES = {"small": ((16, 32, 64, 128), 64), "large": ((64, 128, 256, 512), 256)}


def _zero(bias: Tensor | None) -> None:
    assert bias is not None
    nn.init.zeros_(bias)


def start_at(layer: nn.Linear, values: np.ndarray) -> None:
    """Let ``layer`` give ``values`` for every input, and keep initialising visitors and decay away from it."""
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.from_numpy(values.reshape(-1)))
    guard(layer.weight, layer.bias)


class STNHead(nn.Module):
    """Six convolutions, a hidden layer damped by 0.1, and the parameters: ``[B, C, h, w] -> [B, len(start)]``.

    Args:
        size: h and w of the input, multiples of 32.
        start: what it gives for every image before training.
        channels: of the six convolutions; hidden: width of the layer behind them.
        norm: ``layer``, or ``batch`` as in ASTER; a training batch of one image then uses the running statistics.
        fc_std: deviation of the hidden layer's first weights; None: PyTorch's own.
        size_key: what the config calls ``size``.

    Raises:
        ConfigError: a size that five poolings do not divide, not six channels.
    """

    def __init__(
        self,
        in_channels: int,
        size: Sequence[int],
        start: np.ndarray,
        channels: Sequence[int] = CHANNELS,
        hidden: int = 512,
        norm: str = "layer",
        fc_std: float | None = None,
        size_key: str = "loc_size",
    ):
        super().__init__()
        if len(size) != 2 or size[0] % 32 or size[1] % 32 or size[0] * size[1] < 2048:
            raise ConfigError(
                f"Transform.{size_key}: the copy the warp is read from must have sides that are multiples of 32 and "
                f"more than one cell of 32 x 32 px, got {list(size)}. Set it to [32, 64]."
            )
        if len(channels) != 6:
            raise ConfigError(f"Transform.channels: expected six numbers, one per convolution, got {list(channels)}.")
        layers: list[nn.Module] = []
        for c_in, c_out in zip((in_channels, *channels), channels):
            conv = nn.Conv2d(c_in, c_out, 3, padding=1)
            nn.init.normal_(conv.weight, 0, math.sqrt(2 / (9 * c_out)))
            _zero(conv.bias)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU()), nn.MaxPool2d(2)]
        self.stn_convnet = nn.Sequential(*layers[:-1])
        fc = nn.Linear(channels[-1] * (size[0] // 32) * (size[1] // 32), hidden)
        if fc_std is not None:
            nn.init.normal_(fc.weight, 0, fc_std)
            _zero(fc.bias)
        self.stn_fc1 = nn.Sequential(fc, nn.LayerNorm(hidden) if norm == "layer" else nn.BatchNorm1d(hidden), nn.ReLU())
        self.stn_fc2 = nn.Linear(hidden, start.size)
        start_at(self.stn_fc2, start)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stn_fc1[0](self.stn_convnet(x).flatten(1))
        norm = self.stn_fc1[1]
        if self.training and x.shape[0] == 1 and isinstance(norm, nn.BatchNorm1d):
            # One image has no variance of its own.
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        else:
            x = norm(x)
        return exact(self.stn_fc2, 0.1 * F.relu(x))


class _ConvBN(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class LocalizationNetwork(nn.Module):
    """Four convolutions, each with a pooling, and two linear layers: an image of any size -> ``[B, len(start)]``.

    Args:
        model_name: ``small`` or ``large``.
        start: what it gives for every image before training.
    """

    def __init__(self, in_channels: int, model_name: str, start: np.ndarray):
        super().__init__()
        if model_name not in MODEL_NAMES:
            raise ConfigError(f"Transform.model_name: expected small, large or null, got {model_name!r}.")
        channels, hidden = MODEL_NAMES[model_name]
        blocks: list[nn.Module] = []
        for c_in, c_out in zip((in_channels, *channels), channels):
            blocks += [_ConvBN(c_in, c_out), nn.MaxPool2d(2)]
        self.block_list = nn.Sequential(*blocks[:-1], nn.AdaptiveAvgPool2d(1))
        self.fc1 = nn.Linear(channels[-1], hidden)
        self.fc2 = nn.Linear(hidden, start.size)
        start_at(self.fc2, start)

    def forward(self, x: Tensor) -> Tensor:
        return exact(self.fc2, F.relu(self.fc1(self.block_list(x).flatten(1))))
