"""Layers that several encoders and decoders share: each is written once, here.

Sources: the transformer parts follow Vaswani et al., "Attention Is All You Need", and ViT (Dosovitskiy et al.);
stochastic depth is Huang et al., "Deep Networks with Stochastic Depth". State-dict names are those of OpenOCR
(Topdu/OpenOCR, Apache-2.0) and DAMamba (ltzovo/DAMamba), so that weights of either project load.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.record import heard, record, recording
from openrec.ops._checks import full_precision


class DropPath(nn.Module):
    """Stochastic depth: drops the whole residual branch of a sample with probability ``p`` while training.

    Kept samples are divided by the keep probability, so the expected value stays.
    """

    def __init__(self, p: float = 0.0):
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ConfigError(f"drop_path_rate: expected a probability, at least 0 and below 1, got {p}.")
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1.0 - self.p
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"p={self.p:.3f}"


def drop_path(p: float) -> nn.Module:
    """``DropPath(p)``, or an identity when nothing is ever dropped."""
    return DropPath(p) if p > 0.0 else nn.Identity()


_X86 = platform.machine().lower() in ("x86_64", "amd64")


def _use_onednn(x: Tensor, weight: Tensor) -> bool:
    """Float32 on an x86 CPU in eager mode: where oneDNN's product is worth calling instead of PyTorch's default."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return (
        _X86
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim in (3, 4)
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``F.linear``, through oneDNN on x86 CPUs: the same numbers to rounding, about twice as fast on AMD.

    PyTorch multiplies float32 matrices with MKL, which does not use the full width of other makers' processors;
    its 1x1 convolutions go to oneDNN, which does. ``gelu`` applies the exact GELU to the result.
    """
    if _use_onednn(x, weight):
        if not torch.is_grad_enabled():
            tail: tuple = ("gelu", [], "none") if gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *tail)
        # PyTorch hands convolutions of small batches on one thread to another, slower routine.
        if x.shape[0] >= 16 or torch.get_num_threads() > 1:
            maps = x.unsqueeze(1) if x.ndim == 3 else x
            out = F.conv2d(maps.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)
            out = out.squeeze(1) if x.ndim == 3 else out
            return F.gelu(out) if gelu else out
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


def exact(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` in float32 (float64 when given), also under autocast: for coordinates and their weights."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with full_precision(x.device):
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return linear(x.to(dtype), layer.weight.to(dtype), bias)


class Linear(nn.Linear):
    """``nn.Linear`` that multiplies with ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Two linear layers with an activation and dropout after each: ``[..., dim] -> [..., out or dim]``."""

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        out: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
    ):
        super().__init__()
        self.fc1 = Linear(dim, hidden or dim)
        self.act = act_layer()
        self.fc2 = Linear(hidden or dim, out or dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.act, nn.GELU) and self.act.approximate == "none":
            x = linear(x, self.fc1.weight, self.fc1.bias, gelu=True)
        else:
            x = self.act(self.fc1(x))
        return self.drop(self.fc2(self.drop(x)))


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """``F.scaled_dot_product_attention``: softmax(q k' + mask) v over ``[..., N, width]``.

    Half precision becomes float32 on a CPU: PyTorch's own gradient takes five to eight times as long there in bf16.
    """
    if q.device.type != "cpu" or q.dtype not in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, **options)
    return out.to(q.dtype)


@torch.no_grad()
def tell_attention(module: nn.Module, q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Tell as ``attn`` what the fused product never forms, softmax(q k' * scale + mask) ``[B, .., N, K]`` in float32.

    Ask ``recording(module)`` first. mask: added where it is a number; where it is bool, False hides a key.
    """
    q, k, mask = heard(module, q), heard(module, k), None if mask is None else heard(module, mask)
    with full_precision(q.device):
        scores = q.float() @ k.float().transpose(-1, -2) * scale
        if mask is not None:
            hides = mask.dtype == torch.bool
            scores = scores.masked_fill(~mask, -math.inf) if hides else scores + mask.float()
        weights = scores.softmax(-1)
    record(module, "attn", weights)
    return weights


class Attention(nn.Module):
    """Multi-head self-attention over ``[B, N, dim]``.

    Args:
        qk_scale: factor of the scores; ``None`` means ``(dim / num_heads) ** -0.5``.
        attn_drop: dropout on the attention weights; proj_drop: on the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ConfigError(
                f"Attention: {dim} channels cannot be split into {num_heads} heads of equal width. "
                "Let num_heads divide them."
            )
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        if recording(self):
            tell_attention(self, q, k, self.scale)
        p = self.attn_drop.p if self.training else 0.0
        x = dot_product_attention(q, k, v, dropout_p=p, scale=self.scale)  # [B, heads, N, c]
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, n, c)))


class ConvBNLayer(nn.Module):
    """Convolution, BatchNorm and activation: ``[B, Cin, H, W] -> [B, Cout, H', W']``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = False,
        groups: int = 1,
        act: Callable[[], nn.Module] = nn.GELU,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(conv_norm(x, self.conv, self.norm))


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """``norm(conv(x))``; with fixed statistics the norm is a factor and a shift per channel: part of the kernel."""
    if norm.training:
        return norm(conv(x))
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of every position of ``[B, C, H, W]``; the parameters are those of ``norm``.

    A channels-last tensor is normalised without a copy, and the result is channels-last in memory.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def as_vector(like: Tensor, *values: float) -> Tensor:
    """``values`` as a tensor ``[n]`` of ``like``'s dtype and device.

    For numbers made from the size of a map: ``like.new_tensor(values)`` would write the sizes that an exporter traces
    with into the graph as constants, without a word.
    """
    return torch.stack([like.new_full((), value) for value in values])


def maybe(*numbers: int) -> bool:
    """Whether one of them is not zero, or is a size that an exporter leaves free, which may be either."""
    return any(isinstance(number, torch.SymInt) or number for number in numbers)


def flatten_map(x: Tensor) -> Tensor:
    """``[B, C, H, W] -> [B, H*W, C]``, row by row (a view when the memory is channels-last)."""
    return x.flatten(2).transpose(1, 2)


def unflatten_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """``[B, H*W, C] -> [B, C, H, W]``; the inverse of ``flatten_map``."""
    return x.transpose(1, 2).unflatten(2, (size[0], size[1]))


# ---------------------------------------------------------------------------- initialisation


def guard(*parameters: Tensor | None, decay: bool = False) -> None:
    """Protect parameters that a blanket initialisation would destroy (``_no_reinit``).

    ``decay=False`` also keeps weight decay off them (``_no_weight_decay``): the usual case, since a value that
    must not be re-drawn usually must not be pulled to zero either.
    """
    for parameter in parameters:
        if parameter is None:
            continue
        parameter._no_reinit = True  # type: ignore[attr-defined]
        if not decay:
            parameter._no_weight_decay = True  # type: ignore[attr-defined]


def init_free(parameter: Tensor | None) -> bool:
    """True when ``parameter`` exists and an initialising visitor may write it."""
    return parameter is not None and not getattr(parameter, "_no_reinit", False)


def trunc_normal_(tensor: Tensor, std: float = 0.02) -> Tensor:
    """Normal values of mean 0 and deviation ``std``, cut at -2 and 2 (in place)."""
    return nn.init.trunc_normal_(tensor, std=std)


def init_svtr(module: nn.Module) -> None:
    """SVTRv2's initialisation, for ``model.apply(init_svtr)``; skips parameters flagged ``_no_reinit``.

    Linear: truncated normal 0.02, bias 0. LayerNorm: 1 and 0. Conv2d: Kaiming normal, fan-out (groups not
    divided out), its bias left as built. BatchNorm: left as built.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, nn.Linear):
        if init_free(weight):
            trunc_normal_(module.weight)
        if init_free(bias):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        if init_free(weight):
            nn.init.ones_(module.weight)
        if init_free(bias):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d) and init_free(weight):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def flagged_names(module: nn.Module, flag: str = "_no_weight_decay") -> set[str]:
    """Full names (inside ``module``) of the parameters that carry ``flag``."""
    return {name for name, parameter in module.named_parameters() if getattr(parameter, flag, False)}


def drop_path_rates(rate: float, depths: Iterable[int]) -> list[list[float]]:
    """One stochastic-depth rate per block, rising linearly from 0 to ``rate`` over all blocks."""
    depths = list(depths)
    last = max(sum(depths) - 1, 1)
    rates = iter([rate * i / last for i in range(sum(depths))])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def inverse_softplus(x: Tensor) -> Tensor:
    """The ``y`` with ``softplus(y) == x``, for ``x > 0``, without overflow."""
    return x + torch.log(-torch.expm1(-x))


def log_uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Values whose logarithm is uniform between ``log(low)`` and ``log(high)``."""
    return torch.exp(torch.rand(shape) * (math.log(high) - math.log(low)) + math.log(low))
