"""Deformable convolution v3: a kernel whose points move by learned offsets, with a modulation per point.

Idea: Wang et al., "InternImage" (OpenGVLab/InternImage, MIT). With ``kernel_size=1`` and no mask it is the
adaptive scan of DAMamba (ltzovo/DAMamba): every output pixel reads one freely placed point per group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openrec.ops._checks import check_real, check_shape, compute_dtype, full_precision
from openrec.ops._load import choose
from openrec.ops._native_dcnv3 import call_dcnv3
from openrec.ops.deform_sample import deform_sample_ref, sample_rows

Pair = tuple[int, int]


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
    if min(pair) < least:
        raise ValueError(f"dcnv3: {name} must be at least {least}, got {value}")
    return pair


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    kernel_size: int | Pair = 1,
    stride: int | Pair = 1,
    pad: int | Pair = 0,
    dilation: int | Pair = 1,
    group: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool | int = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Deformable convolution v3 (without its linear layers).

    Args:
        input: [B, H, W, C], channels last; group ``g`` owns a contiguous chunk of ``C / group`` channels.
        offset: [B, Ho, Wo, group * P * 2], pixels, (dx, dy) per point; the ``P`` kernel points are ordered column
            by column (x outer, y inner).
        mask: [B, Ho, Wo, group * P] or ``None``, which means all ones.
        kernel_size, stride, pad, dilation: one number or (vertical, horizontal).
        offset_scale: stretches kernel grid and offsets about the kernel's centre.
        remove_center: leave the centre point out (odd kernels only): ``P`` is one less.

    Returns:
        [B, Ho, Wo, C] in the dtype of ``input``; zero is read outside the map, and where an offset is NaN.
    """
    chosen = choose("dcnv3", backend, input.device)
    grid = _Grid(input, offset, mask, kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
    if chosen == "native":
        geometry = tuple(list(pair) for pair in (grid.kernel, grid.stride, grid.pad, grid.dilation))
        return call_dcnv3(input, offset, mask, geometry, grid.group, grid.scale, grid.remove_center)
    with full_precision(input.device):
        x, y, weight, value = grid.points(input, offset, mask)
        fast = chosen == "torch" and value.device.type in ("cpu", "cuda")
        fast = fast and not torch.compiler.is_compiling()  # a compiler fuses grid_sample, but not hand-written steps
        out = sample_rows(value, x, y, weight) if fast else _by_grid_sample(value, x, y, weight)
    return out.to(input.dtype)


def dcnv3_ref(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    kernel_size: int | Pair = 1,
    stride: int | Pair = 1,
    pad: int | Pair = 0,
    dilation: int | Pair = 1,
    group: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool | int = False,
) -> Tensor:
    """``dcnv3`` written with ``grid_sample``: the definition that every faster form is tested against."""
    geometry = (kernel_size, stride, pad, dilation)
    return dcnv3(input, offset, mask, *geometry, group, offset_scale, remove_center, backend="reference")


class _Grid:
    """The kernel's geometry, checked against the tensors."""

    def __init__(self, input, offset, mask, kernel_size, stride, pad, dilation, group, offset_scale, remove_center):
        check_real("dcnv3", input=input, offset=offset, mask=mask)
        check_shape("dcnv3", "input", input, (None,) * 4, "[B, H, W, C]")
        self.kernel, self.stride = _pair("kernel_size", kernel_size, 1), _pair("stride", stride, 1)
        self.pad, self.dilation = _pair("pad", pad, 0), _pair("dilation", dilation, 1)
        self.group, self.scale = int(group), float(offset_scale)
        self.remove_center = bool(remove_center)
        b, h, w, c = input.shape
        if self.group < 1 or c % self.group:
            raise ValueError(f"dcnv3: {c} channels cannot be split into {group} groups of equal width")
        if self.remove_center and (self.kernel[0] % 2 == 0 or self.kernel[1] % 2 == 0 or self.kernel == (1, 1)):
            raise ValueError(f"dcnv3: remove_center needs an odd kernel larger than 1, got {self.kernel}")
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel)]
        self.size = tuple((n + 2 * p - s) // t + 1 for n, p, s, t in zip((h, w), self.pad, spans, self.stride))
        if min(self.size) < 1:
            raise ValueError(f"dcnv3: a {h}x{w} map padded by {self.pad} is smaller than the kernel's span {spans}")
        self.count = self.kernel[0] * self.kernel[1] - self.remove_center
        expected = (b, *self.size, self.group * self.count)
        check_shape("dcnv3", "offset", offset, (*expected[:3], expected[3] * 2), "[B, Ho, Wo, group*P*2]")
        if mask is not None:
            check_shape("dcnv3", "mask", mask, expected, "[B, Ho, Wo, group*P]")

    def points(
        self, input: Tensor, offset: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Positions in pixels ``x``, ``y`` [B, Ho, Wo, G, P], the weights and the map in computing precision."""
        dtype = compute_dtype(input, offset, mask)
        shape = (offset.shape[0], *self.size, self.group, self.count)
        moved = offset.to(dtype).reshape(*shape, 2)
        base_x, base_y = self._base(dtype, input.device)
        if self.scale != 1.0:
            moved = moved * self.scale
        x, y = moved[..., 0] + base_x, moved[..., 1] + base_y
        return x, y, None if mask is None else mask.to(dtype).reshape(shape), input.to(dtype)

    def _base(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Undisplaced positions, x [Wo, 1, P] and y [Ho, 1, 1, P]."""
        axes = []
        for axis in (0, 1):
            centre = self.dilation[axis] * (self.kernel[axis] - 1) // 2
            start = torch.arange(self.size[axis], dtype=dtype, device=device) * self.stride[axis]
            step = torch.arange(self.kernel[axis], dtype=dtype, device=device) * self.dilation[axis]
            axes.append((start + (centre - self.pad[axis]), (step - centre) * self.scale))
        (y, ky), (x, kx) = axes
        kx, ky = kx.repeat_interleave(len(ky)), ky.repeat(len(kx))  # x outer, y inner
        if self.remove_center:
            middle = len(kx) // 2
            kx, ky = torch.cat((kx[:middle], kx[middle + 1 :])), torch.cat((ky[:middle], ky[middle + 1 :]))
        return x.view(-1, 1, 1) + kx, y.view(-1, 1, 1, 1) + ky


def _by_grid_sample(value: Tensor, x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """``sample_rows`` through ``deform_sample_ref``."""
    b, h, w, c = value.shape
    ho, wo, g, p = x.shape[1:]

    def per_group(t: Tensor) -> Tensor:  # [B, Ho, Wo, G, P] -> [B, G, Q, P]
        return t.reshape(b, ho * wo, g, p).transpose(1, 2)

    maps = value.view(b, h, w, g, c // g).permute(0, 3, 4, 1, 2)
    loc = torch.stack(((per_group(x) + 0.5) / w, (per_group(y) + 0.5) / h), -1)
    ones = torch.ones_like(x) if weight is None else weight
    out = deform_sample_ref(maps, loc, per_group(ones))  # [B, G, c, Q]
    return out.permute(0, 3, 1, 2).reshape(b, ho, wo, c)
