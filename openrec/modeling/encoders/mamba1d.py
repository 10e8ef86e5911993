"""The plain Mamba layer on the map read as one sequence: what the adaptive scan of ``dassm`` is measured against.

Source: Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (state-spaces/mamba, Apache-2.0),
whose state-dict names are kept; the second direction follows Zhu et al., "Vision Mamba". Tokens stay ``[B, L, D]``
in memory throughout, and the backward direction runs backwards instead of turning its input around.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.encoders.dassm import ConvFFN, DASSMBlock, ResDWC, tell_scan
from openrec.modeling.layers import LayerNorm2d, Linear, guard, inverse_softplus, log_uniform
from openrec.modeling.layers import drop_path as stochastic_depth
from openrec.modeling.record import recording
from openrec.ops import causal_conv1d, selective_scan
from openrec.ops._load import Backend

COMPILED = find_spec("causal_conv1d") is not None  # the package causal-conv1d


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, reverse: bool = False) -> Tensor:
    """Depthwise convolution over time, before any activation; y_t sees x_t and what comes before (or after) it.

    Args:
        x: [B, L, D]. weight: [D, width], the last entry meets x_t. bias: [D].
        reverse: look ahead instead: the same as turning ``x`` around before and after.
    """
    width = weight.shape[1]
    row = x.transpose(1, 2).unsqueeze(2)  # [B, D, 1, L], channels-last in memory
    kernel = (weight.flip(1) if reverse else weight)[:, None, None]
    y = F.conv2d(row, kernel, bias, padding=(0, width - 1), groups=weight.shape[0])
    y = y[..., width - 1 :] if reverse else y[..., : x.shape[1]]
    return y.squeeze(2).transpose(1, 2)


class Scan1D(nn.Module):
    """Convolution and selective scan of one direction, ``[B, L, inner] -> [B, L, inner]``, gated by ``silu(z)``.

    Args:
        d_model: channels of the model, which ``dt_rank`` 'auto' = ``ceil(d_model / 16)`` is taken from.
        reverse: from the last token to the first.
        scan_order: 'row' or 'col', how the tokens were read from a map; a diagnosis puts them back.
    """

    def __init__(
        self,
        inner: int,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        dt_rank: int | Literal["auto"] = "auto",
        reverse: bool = False,
        op_backend: Backend = "auto",
        scan_order: str = "row",
    ):
        super().__init__()
        if not 2 <= d_conv <= 4:
            raise ConfigError(f"Mamba1D: d_conv must be 2, 3 or 4, got {d_conv}.")
        self.rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.d_state, self.reverse, self.op_backend, self.scan_order = d_state, reverse, op_backend, scan_order
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = Linear(inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
            self.dt_proj.bias.copy_(inverse_softplus(log_uniform((inner,), 0.001, 0.1).clamp(min=1e-4)))
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))  # A = -1 .. -N
        self.D = nn.Parameter(torch.ones(inner))
        guard(self.x_proj.weight, self.dt_proj.weight, decay=True)
        guard(self.dt_proj.bias, self.A_log, self.D)

    def forward(self, x: Tensor, z: Tensor | None = None, size: Sequence[int] | None = None) -> Tensor:
        """``size``: of the map that the tokens were read from, transposed where they were read by column."""
        u = self.convolve(x)
        step, b, c = self.x_proj(u).split((self.rank, self.d_state, self.d_state), -1)
        delta = F.linear(step, self.dt_proj.weight)
        decay = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        result = selective_scan(
            u,
            delta,
            decay,
            b,
            c,
            self.D,
            z,
            self.dt_proj.bias,
            True,
            recording(self),
            reverse=self.reverse,
            channels_last=True,
            backend=self.op_backend,
        )
        return tell_scan(self, result, delta, self.dt_proj.bias, decay, size or (1, x.shape[1]), self.scan_order)

    def convolve(self, x: Tensor) -> Tensor:
        """SiLU of the causal convolution, [B, L, inner]."""
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        if COMPILED and x.is_cuda and not self.reverse and self.op_backend != "reference":
            dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
            y = causal_conv1d(
                x.to(dtype).transpose(1, 2), weight.to(dtype), cast(Tensor, bias).to(dtype), activation="silu"
            )
            return cast(Tensor, y).transpose(1, 2)
        return F.silu(causal_conv(x, weight, bias, self.reverse))


class Mamba1D(Scan1D):
    """The Mamba layer on a map ``[B, d_model, H, W]`` read row by row ('row') or column by column ('col').

    With ``bidirectional`` a second scan, with its own parameters under ``backward_scan``, runs from the end; both
    share the projections and the gate, and are added.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dropout: float = 0.0,
        scan_order: str = "row",
        bidirectional: bool = False,
        op_backend: Backend = "auto",
    ):
        inner = int(expand * d_model)
        super().__init__(inner, d_model, d_state, d_conv, dt_rank, False, op_backend, scan_order)
        if scan_order not in ("row", "col"):
            raise ConfigError(f'Mamba1D: scan_order must be "row" or "col", got "{scan_order}".')
        self.in_proj = Linear(d_model, 2 * inner, bias=False)
        self.backward_scan: Scan1D | None = None
        if bidirectional:
            self.backward_scan = Scan1D(inner, d_model, d_state, d_conv, dt_rank, True, op_backend, scan_order)
        self.out_proj = Linear(inner, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x.transpose(2, 3) if self.scan_order == "col" else x
        size = x.shape[2:]
        y = self.mix(x.permute(0, 2, 3, 1).flatten(1, 2), size).unflatten(1, size).permute(0, 3, 1, 2)
        return y.transpose(2, 3) if self.scan_order == "col" else y

    def mix(self, tokens: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The layer on tokens, ``[B, L, d_model] -> [B, L, d_model]``; ``size``: see ``Scan1D.forward``."""
        a, z = self.in_proj(tokens).chunk(2, -1)
        y = super().forward(a, z, size)
        if self.backward_scan is not None:
            y = y + self.backward_scan(a, z, size)
        return self.dropout(self.out_proj(y))


class Mamba1DBlock(DASSMBlock):
    """``DASSMBlock`` with ``Mamba1D`` for its token mixer: position encoding, scan, convolutional MLP; a map."""

    def __init__(
        self,
        dim: int,
        *,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        eps: float = 1e-6,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        scan_order: str = "row",
        bidirectional: bool = False,
        op_backend: Backend = "auto",
    ):
        nn.Module.__init__(self)  # the frame is shared, the adaptive scan inside it is not built
        self.layerscale = False
        self.pos_embed = ResDWC(dim)
        self.norm1 = LayerNorm2d(dim, eps=eps)
        self.token_mixer: nn.Module = Mamba1D(  # type: ignore[assignment]
            dim, d_state, d_conv, expand, dt_rank, drop, scan_order, bidirectional, op_backend
        )
        self.drop_path = stochastic_depth(drop_path)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvFFN(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
