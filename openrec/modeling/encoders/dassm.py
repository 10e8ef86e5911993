"""The Dynamic Adaptive state-space block of DA-Mamba: a selective scan over adaptively sampled positions.

Source: DAMamba (ltzovo/DAMamba, "DAMamba: Vision State Space Model with Dynamic Adaptive Scan", no licence file), whose
state-dict names are kept; selective scan by Gu & Dao, "Mamba"; sampling by Wang et al., "InternImage". Everything
runs channels-last, so the map is the sequence: no copy stands between convolution, sampling and scan.

What differs from the original: offsets really start at zero (its blanket initialisation overwrites them), any
``expand`` and ``d_state`` work, and the frozen identity kernels (``conv_constant``) are gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.layers import (
    LayerNorm2d,
    Linear,
    drop_path,
    guard,
    inverse_softplus,
    linear,
    log_uniform,
    trunc_normal_,
)
from openrec.modeling.record import heard, record, recording
from openrec.ops import dcnv3, selective_scan
from openrec.ops._load import Backend


class ResDWC(nn.Module):
    """x + depthwise convolution of x, ``[B, C, H, W]``: a position encoding that knows no image size."""

    identity: Tensor

    def __init__(self, dim: int, kernel_size: int = 3):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ConfigError(f"ResDWC: the kernel must be odd to keep the map's size, got {kernel_size}.")
        self.conv = nn.Conv2d(dim, dim, kernel_size, 1, kernel_size // 2, groups=dim)
        one = torch.zeros(1, 1, kernel_size, kernel_size)
        one[..., kernel_size // 2, kernel_size // 2] = 1
        self.register_buffer("identity", one, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # 1 + w would lose most of w's digits in half precision
            return x + self.conv(x)
        conv = self.conv  # x + w * x = (1 + w) * x: one pass over the map instead of two
        return F.conv2d(x, conv.weight + self.identity, conv.bias, 1, conv.padding, 1, conv.groups)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # DAMamba stores its identity kernel as a frozen parameter; here the identity is the addition.
        state_dict.pop(prefix + "conv_constant", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ConvFFN(nn.Module):
    """1x1 convolution, GELU, ``ResDWC``, 1x1 convolution, with dropout: ``[B, C, H, W] -> [B, out, H, W]``."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
    ):
        super().__init__()
        hidden = hidden_features or in_features
        self.fc1 = nn.Conv2d(in_features, hidden, 1)
        self.act = act_layer()
        self.fc2 = nn.Conv2d(hidden, out_features or in_features, 1)
        self.conv = ResDWC(hidden)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.drop(self.act(_pointwise(self.fc1, x))))
        return self.drop(_pointwise(self.fc2, x))


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution as the matrix product it is: channels-last maps need no other layout for it."""
    return linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


class _ToChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Dynamic_Adaptive_Scan(nn.Module):
    """Move every position of a map by a learned offset: one sample per position and group.

    Args:
        channels: channels of the tensor that the offsets are computed from.
        group: number of groups; a group of channels shares its offset.
        offset_scale: factor of the offsets (pixels).
        das_init: 'zero' starts as the plain raster scan; 'trunc_normal' is what the original really starts from.
    """

    def __init__(
        self,
        channels: int,
        group: int = 1,
        offset_scale: float = 1.0,
        das_init: str = "zero",
        op_backend: Backend = "auto",
    ):
        super().__init__()
        self.group, self.offset_scale, self.op_backend = group, offset_scale, op_backend
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels),
            nn.Sequential(_ToChannelsLast(), nn.LayerNorm(channels, eps=1e-6)),
            nn.GELU(),
        )
        self.offset = Linear(channels, group * 2)
        if das_init not in ("zero", "trunc_normal"):
            raise ConfigError(f'DASSM: das_init must be "zero" or "trunc_normal", got "{das_init}".')
        (nn.init.zeros_ if das_init == "zero" else trunc_normal_)(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        guard(self.offset.weight, self.offset.bias, decay=True)

    def forward(self, input: Tensor, x: Tensor) -> Tensor:
        """``input`` [B, C, H, W] drives the offsets, ``x`` [B, H, W, C'] is sampled; returns [B, C', H, W]."""
        offset = self.offset(self.dw_conv(input))  # [B, H, W, group * 2], pixels
        if recording(self):
            self._tell(offset.detach().float() * self.offset_scale)
        out = dcnv3(x, offset, group=self.group, offset_scale=self.offset_scale, backend=self.op_backend)
        return out.permute(0, 3, 1, 2)

    def _tell(self, offset: Tensor) -> None:
        h, w = offset.shape[1:3]
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        size = offset.new_tensor([w, h])
        reference = torch.stack((x, y), -1).to(offset).reshape(h * w, 2) / size
        offset = offset.reshape(offset.shape[0], h * w, self.group, 1, 2).transpose(1, 2)  # [B, group, H * W, 1, 2]
        record(self, "ref", reference)
        record(self, "offset", offset)
        record(self, "loc", reference[:, None] + offset / size)


class DASSM(nn.Module):
    """Adaptive sampling followed by a selective scan, ``[B, d_model, H, W] -> [B, d_model, H, W]``.

    Args:
        d_model: channels; d_state: states per channel; d_conv: kernel of the depthwise convolution.
        expand: inner channels are ``expand * d_model``; head_dim: model channels per sampling group.
        dt_rank: rank of the step's projection, 'auto' = ``ceil(d_model / 16)``.
        dt_min, dt_max, dt_init_floor: the initial step is log-uniform in this range.
        dt_init: 'random' or 'constant', the step's projection; dt_scale: its factor.
        dropout: on the output; conv_bias, bias: of the depthwise convolution and of the projections.
        scan_order: 'row' reads the map row by row, 'col' column by column.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 1,
        d_conv: int = 3,
        expand: float = 1,
        head_dim: int = 16,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        dropout: float = 0.0,
        conv_bias: bool = True,
        bias: bool = False,
        das_init: str = "zero",
        scan_order: str = "row",
        op_backend: Backend = "auto",
    ):
        super().__init__()
        inner, group = int(expand * d_model), d_model // head_dim
        if d_model % head_dim or inner % group:
            raise ConfigError(
                f"DASSM: {d_model} channels (times expand = {inner}) cannot be split into groups of head_dim "
                f"{head_dim}; choose a head_dim that divides them."
            )
        if d_conv % 2 == 0:
            raise ConfigError(f"DASSM: d_conv must be odd to keep the map's size, got {d_conv}. Use 3 or 5.")
        if scan_order not in ("row", "col"):
            raise ConfigError(f'DASSM: scan_order must be "row" or "col", got "{scan_order}".')
        self.rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.d_state, self.scan_order, self.op_backend = d_state, scan_order, op_backend
        # Bare parameters, in the original's order.
        bound = inner**-0.5
        self.x_proj_weight = nn.Parameter(torch.empty(self.rank + 2 * d_state, inner).uniform_(-bound, bound))
        self.dt_projs_weight = nn.Parameter(_dt_weight(inner, self.rank, dt_init, dt_scale))
        step = log_uniform((inner,), dt_min, dt_max).clamp(min=dt_init_floor)
        self.dt_projs_bias = nn.Parameter(inverse_softplus(step))
        self.A_logs = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))  # S4D: A = -1 .. -N
        self.Ds = nn.Parameter(torch.ones(inner))
        guard(self.x_proj_weight, self.dt_projs_weight, decay=True)
        guard(self.dt_projs_bias, self.A_logs, self.Ds)
        self.in_proj = nn.Conv2d(d_model, inner, 1, bias=bias)
        self.conv2d = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias)
        self.out_norm = LayerNorm2d(inner)
        self.out_proj = nn.Conv2d(inner, d_model, 1, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.da_scan = Dynamic_Adaptive_Scan(d_model, group, das_init=das_init, op_backend=op_backend)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # once for both that read it
            x = x.to(torch.get_autocast_dtype(x.device.type))
        c = F.silu(self.conv2d(_pointwise(self.in_proj, x)))
        sampled = self.da_scan(x, c.permute(0, 2, 3, 1))  # offsets come from x, not from c
        y = self.scan(sampled)
        return self.dropout(_pointwise(self.out_proj, self.out_norm(y)))

    def scan(self, x: Tensor) -> Tensor:
        """The selective scan over the map, ``[B, inner, H, W] -> [B, inner, H, W]``."""
        if self.scan_order == "col":
            x = x.transpose(2, 3)
        size = x.shape[2:]
        u = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, L, inner]
        parts = linear(u, self.x_proj_weight)
        step, b, c = parts.split((self.rank, self.d_state, self.d_state), -1)
        delta = linear(step, self.dt_projs_weight)
        decay = -torch.exp(self.A_logs.to(torch.promote_types(self.A_logs.dtype, torch.float32)))
        result = selective_scan(
            u.transpose(1, 2),
            delta.transpose(1, 2),
            decay,
            b.transpose(1, 2),
            c.transpose(1, 2),
            self.Ds,
            delta_bias=self.dt_projs_bias,
            delta_softplus=True,
            return_last_state=recording(self),
            backend=self.op_backend,
        )
        y = tell_scan(self, result, delta, self.dt_projs_bias, decay, size, self.scan_order).unflatten(2, size)
        return y.transpose(2, 3) if self.scan_order == "col" else y


def tell_scan(
    module: nn.Module,
    result: Tensor | tuple[Tensor, Tensor],
    delta: Tensor,
    bias: Tensor,
    a: Tensor,
    size: Sequence[int],
    scan_order: str,
) -> Tensor:
    """The output of a scan; to a diagnosis its last state, its steps and what they leave of a state, ``[B, H, W, ..]``.

    Args:
        result: of ``selective_scan``, with the last state while somebody listens.
        delta, a: steps before bias and softplus ``[B, L, inner]``, and A ``[inner, d_state]``.
        size: of the map as it was scanned, transposed where ``scan_order`` is "col".
    """
    if isinstance(result, Tensor):
        return result
    dt = F.softplus(heard(module, delta).detach().float() + bias.detach().float()).unflatten(1, size)
    dt = dt.transpose(1, 2) if scan_order == "col" else dt
    record(module, "dt", dt)
    record(module, "decay", torch.exp(dt[..., None] * a.detach()))
    record(module, "state", result[1])
    return result[0]


def _dt_weight(inner: int, rank: int, dt_init: str, dt_scale: float) -> Tensor:
    bound = rank**-0.5 * dt_scale
    if dt_init == "random":
        return torch.empty(inner, rank).uniform_(-bound, bound)
    if dt_init == "constant":
        return torch.full((inner, rank), bound)
    raise ConfigError(f'DASSM: dt_init must be "random" or "constant", got "{dt_init}".')


class DASSMBlock(nn.Module):
    """Position encoding, DASSM and convolutional MLP, pre-norm and residual, ``[B, dim, H, W]`` throughout.

    Args:
        drop: dropout of DASSM's output and of both MLP layers; drop_path: stochastic depth.
        layerscale: scale both branches by learned factors that start at ``layer_scale_init_value``.
        mamba_init: 'svtr' leaves convolution weights to the encoder's initialisation; 'damamba' draws convolution
            and linear weights from a truncated normal 0.02, as the original does.
        Other arguments as in ``DASSM``.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int = 16,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        d_state: int = 1,
        d_conv: int = 3,
        expand: float = 1,
        dt_rank: int | Literal["auto"] = "auto",
        eps: float = 1e-6,
        layerscale: bool = False,
        layer_scale_init_value: float = 1e-6,
        das_init: str = "zero",
        scan_order: str = "row",
        mamba_init: str = "svtr",
        op_backend: Backend = "auto",
    ):
        super().__init__()
        if layerscale:
            self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale_init_value))
            self.layer_scale_2 = nn.Parameter(torch.full((dim,), layer_scale_init_value))
            guard(self.layer_scale_1, self.layer_scale_2)
        self.layerscale = layerscale
        self.pos_embed = ResDWC(dim)
        self.norm1 = LayerNorm2d(dim, eps=eps)
        self.token_mixer = DASSM(
            dim,
            d_state,
            d_conv,
            expand,
            head_dim,
            dt_rank,
            dropout=drop,
            das_init=das_init,
            scan_order=scan_order,
            op_backend=op_backend,
        )
        self.drop_path = _drop_path(drop_path)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvFFN(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self._init_convs(mamba_init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x)
        x = x + self.drop_path(self._scaled(self.token_mixer(self.norm1(x)), "layer_scale_1"))
        return x + self.drop_path(self._scaled(self.mlp(self.norm2(x)), "layer_scale_2"))

    def _scaled(self, x: Tensor, name: str) -> Tensor:
        return x * getattr(self, name).view(-1, 1, 1) if self.layerscale else x

    def _init_convs(self, mamba_init: str) -> None:
        if mamba_init not in ("svtr", "damamba"):
            raise ConfigError(f'DASSMBlock: mamba_init must be "svtr" or "damamba", got "{mamba_init}".')
        for module in self.modules():
            if not isinstance(module, (nn.Conv2d, nn.Linear)) or module is self.token_mixer.da_scan.offset:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if mamba_init == "damamba":
                trunc_normal_(module.weight)
                guard(module.weight, decay=True)


_drop_path = drop_path  # DASSMBlock has a parameter of the same name
