"""Stems of the attention encoders: image ``[B, 3, H, W]`` -> map ``[B, dim, H/4, W/4]``.

``shallow`` is SATRN's (Lee et al., "On Recognizing Texts of Arbitrary Shapes with 2D Self-Attention", CVPRW 2020; names
as in open-mmlab/mmocr, Apache-2.0), ``pope`` SVTRv2's (Topdu/OpenOCR, Apache-2.0), ``resnet45`` the ResNet of ABINet
(Fang et al., CVPR 2021). All leave a map of 8x32 on a 32x128 image: a stride of 32 would leave 1x4, no 2-D at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.encoders.svtrv2_blocks import POPatchEmbed, Size
from openrec.modeling.layers import conv_norm


class ConvBN(nn.Module):
    """Convolution without bias, BatchNorm and ReLU that keep the size at stride 1, under mmocr's names."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(conv_norm(x, self.conv, self.bn))


class ShallowCNN(nn.Module):
    """Two convolutions, each followed by a 2x2 max-pool; an odd size is rounded up."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        self.conv1 = ConvBN(in_channels, dim // 2)
        self.conv2 = ConvBN(dim // 2, dim)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv2(self.pool(self.conv1(x))))


class PopeStem(POPatchEmbed):
    """SVTRv2's two strided convolutions, without the size beside the map."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__(in_channels, embed_dim=dim)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.patch_embed(x)


class ResidualBlock(nn.Module):
    """1x1 and 3x3 convolution around a shortcut; the 3x3 one carries the stride."""

    def __init__(self, in_channels: int, dim: int, stride: int):
        super().__init__()
        self.conv1 = ConvBN(in_channels, dim, 1)
        self.conv2 = nn.Conv2d(dim, dim, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != dim:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, dim, 1, stride, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else conv_norm(x, *self.downsample)
        return F.relu(shortcut + conv_norm(self.conv1(x), self.conv2, self.bn2))


class ResNet45(nn.Module):
    """45 layers in five stages of 32 to 512 channels, halving the size in the first and the third; 1x1 to ``dim``."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        self.conv1 = ConvBN(in_channels, 32)
        blocks, channels = [], 32
        for i, (depth, stride) in enumerate(zip((3, 4, 6, 6, 3), (2, 1, 2, 1, 1))):
            for j in range(depth):
                blocks.append(ResidualBlock(channels, 32 * 2**i, stride if j == 0 else 1))
                channels = 32 * 2**i
        self.blocks = nn.Sequential(*blocks)
        self.proj = nn.Conv2d(channels, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.blocks(self.conv1(x)))


STEMS: dict[str, Callable[[int, int], nn.Module]] = {
    "shallow": ShallowCNN,
    "pope": PopeStem,
    "resnet45": ResNet45,
}


def build_stem(stem: str, in_channels: int, dim: int) -> nn.Module:
    """The stem called ``stem``, Kaiming-initialised; 'none' takes a map of ``dim`` channels as it is.

    Raises:
        ConfigError: no stem of this name, or an odd ``dim``.
    """
    if stem == "none":
        return nn.Identity()
    if stem not in STEMS:
        raise ConfigError(f'Encoder.stem: "{stem}" is none of {", ".join([*STEMS, "none"])}.')
    if dim % 2:
        raise ConfigError(f"Encoder.d_model: the stem halves it, so it must be even, got {dim}.")
    module = STEMS[stem](in_channels, dim)
    for conv in (m for m in module.modules() if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    return module


def map_size(image: Sequence[int], stem: str = "shallow") -> Size:
    """Size (height, width) of the map that a stem leaves of an ``image`` (height, width): a quarter, rounded up."""
    height, width = image
    return (height, width) if stem == "none" else ((height + 3) // 4, (width + 3) // 4)


def run_stem(stem: nn.Module, x: Tensor) -> Tensor:
    """The stem's map in channels-last memory, so that map and tokens share one layout."""
    return stem(x.contiguous(memory_format=torch.channels_last))
