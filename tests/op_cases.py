"""Cases for the raw operators, run on any backend and compared with the references in float64.

A case is a small record; ``run`` calls ``<op>_forward`` and ``<op>_backward`` of a namespace (``torch.ops.openrec``, or
the emulated CUDA kernels), ``expected`` differentiates the plain-PyTorch reference. Inputs are rounded to the tested
dtype first, so what is compared is arithmetic and not the rounding of inputs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from openrec.ops import dcnv3_ref, deform_sample_ref, selective_scan_ref

# Largest error relative to the largest magnitude of the array.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2.5e-2}


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype = torch.float32

    @property
    def id(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({','.join(changed)})".replace("torch.", "").replace(" ", "")

    @property
    def wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(self.id.encode()))


@dataclass(frozen=True)
class Dcn(Case):
    batch: int = 2
    height: int = 5
    width: int = 7
    group: int = 2
    channels: int = 16  # per group
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    scale: float = 1.0
    remove_center: bool = False
    mask: bool = False
    reach: float = 2.0  # size of the offsets in pixels
    wide_offset: bool = False
    wide_mask: bool = False

    def inputs(self) -> dict[str, Tensor | None]:
        g = self.generator()
        out = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip((self.height, self.width), self.pad, self.dilation, self.kernel, self.stride)
        ]
        points = self.kernel[0] * self.kernel[1] - self.remove_center
        value = torch.randn(self.batch, self.height, self.width, self.group * self.channels, generator=g)
        offset = torch.randn(self.batch, *out, self.group * points * 2, generator=g) * self.reach
        # Away from whole pixels, where the derivative jumps: rounding must not decide on which side a sample lies.
        offset = torch.where((offset - offset.round()).abs() < 0.05, offset + 0.13, offset)
        mask = torch.rand(self.batch, *out, self.group * points, generator=g) if self.mask else None
        grad = torch.randn(self.batch, *out, self.group * self.channels, generator=g)
        return {
            "grad": grad.to(self.dtype),
            "input": value.to(self.dtype),
            "offset": offset.to(self.wide if self.wide_offset else self.dtype),
            "mask": None if mask is None else mask.to(self.wide if self.wide_mask else self.dtype),
        }

    def run(self, ops: Any, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
        args = (list(self.kernel), list(self.stride), list(self.pad), list(self.dilation), self.group, self.scale)
        tensors = (t["input"], t["offset"], t["mask"])
        out = ops.dcnv3_forward(*tensors, *args, self.remove_center)
        grads = ops.dcnv3_backward(t["grad"], *tensors, *args, self.remove_center)
        return _named(out, ("input", "offset", "mask"), grads, t)

    def expected(self, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
        args = (self.kernel, self.stride, self.pad, self.dilation, self.group, self.scale, self.remove_center)
        return _reference(lambda input, offset, mask: dcnv3_ref(input, offset, mask, *args), t)


@dataclass(frozen=True)
class Sample(Case):
    batch: int = 2
    heads: int = 3
    channels: int = 5
    height: int = 4
    width: int = 6
    queries: int = 7
    points: int = 3
    weight: bool = True
    reach: float = 1.4  # 1 covers the map
    wide_loc: bool = True

    def inputs(self) -> dict[str, Tensor | None]:
        g = self.generator()
        shape = (self.batch, self.heads, self.queries, self.points)
        out = shape[:2] + (self.channels, self.queries) + (() if self.weight else (self.points,))
        loc = (torch.rand(*shape, 2, generator=g) - 0.5) * self.reach + 0.5
        size = torch.tensor([self.width, self.height])
        pixels = loc * size - 0.5
        loc = torch.where((pixels - pixels.round()).abs() < 0.05, (pixels + 0.13 + 0.5) / size, loc)
        value = torch.randn(self.batch, self.heads, self.channels, self.height, self.width, generator=g)
        weight = torch.rand(shape, generator=g) if self.weight else None
        wide = self.wide if self.wide_loc else self.dtype
        return {
            "grad": torch.randn(out, generator=g).to(self.dtype),
            "value": value.to(self.dtype),
            "loc": loc.to(wide),
            "weight": None if weight is None else weight.to(wide),
        }

    def run(self, ops: Any, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
        tensors = (t["value"], t["loc"], t["weight"])
        out = ops.deform_sample_forward(*tensors)
        return _named(out, ("value", "loc", "weight"), ops.deform_sample_backward(t["grad"], *tensors), t)

    def expected(self, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
        return _reference(deform_sample_ref, t)


@dataclass(frozen=True)
class Scan(Case):
    batch: int = 2
    dim: int = 6
    length: int = 9
    states: int = 1
    groups: int = 1
    D: bool = True
    z: bool = False
    bias: bool = True
    softplus: bool = True
    reverse: bool = False
    channels_last: bool = False
    last_state: bool = False
    size: float = 1.0  # of delta before softplus
    wide_maps: bool = False  # B and C in the arithmetic type
    slices: bool = False  # B and C are slices of one tensor

    def inputs(self) -> dict[str, Tensor | None]:
        g = self.generator()
        sequence = (self.batch, self.length, self.dim) if self.channels_last else (self.batch, self.dim, self.length)
        n, last = self.states, self.channels_last
        maps = (self.batch, self.length, self.groups, n) if last else (self.batch, self.groups, n, self.length)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=g)

        both = normal(*maps[:-1], 2 * maps[-1]).to(self.wide if self.wide_maps else self.dtype)
        B, C = both.split(maps[-1], -1)
        delta = normal(*sequence) * self.size
        return {
            "grad": normal(*sequence).to(self.dtype),
            "grad_last": normal(self.batch, self.dim, n).to(self.wide) if self.last_state else None,
            "u": normal(*sequence).to(self.dtype),
            "delta": (delta if self.softplus else delta.abs() * 0.2).to(self.dtype),
            "A": -(torch.rand(self.dim, n, generator=g) * 2 + 0.05).to(self.wide),
            "B": B if self.slices else B.contiguous(),
            "C": C if self.slices else C.contiguous(),
            "D": normal(self.dim).to(self.wide) if self.D else None,
            "z": normal(*sequence).to(self.dtype) if self.z else None,
            "bias": (normal(self.dim) * 0.3).to(self.wide) if self.bias else None,
        }

    def run(self, ops: Any, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
        names = ("u", "delta", "A", "B", "C", "D", "z", "bias")
        tensors = tuple(t[name] for name in names)
        flags = (self.softplus, self.reverse, self.channels_last)
        out, last = ops.selective_scan_forward(*tensors, *flags, self.last_state)
        grads = ops.selective_scan_backward(t["grad"], t["grad_last"], *tensors, *flags)
        named = _named(out, names, grads, t)
        return {**named, "last_state": last} if self.last_state else named

    def expected(self, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """Through the reference's layout: [B, D, L], forwards in time. Its last state has no gradient; ours is checked
        by letting one more step read it (a step that leaves the state as it is and returns it)."""
        leaf = {k: _double_leaf(v) for k, v in t.items() if k not in ("grad", "grad_last")}

        def plain(x: Tensor | None, time_last: tuple[int, ...]) -> Tensor | None:
            if x is None:
                return None
            x = x.permute(time_last) if self.channels_last else x
            return x.flip(-1) if self.reverse else x

        u, delta, z = (plain(leaf[k], (0, 2, 1)) for k in ("u", "delta", "z"))
        B, C = (plain(leaf[k], (0, 2, 3, 1)) for k in ("B", "C"))
        y = selective_scan_ref(u, delta, leaf["A"], B, C, leaf["D"], z, leaf["bias"], self.softplus)
        back = y.flip(-1) if self.reverse else y
        out = back.transpose(1, 2) if self.channels_last else back
        loss = (out * t["grad"].double()).sum()
        results = {"out": out.detach()}
        if self.last_state:
            last = torch.stack(
                [
                    selective_scan_ref(
                        u, delta, leaf["A"][:, i : i + 1], B[:, :, i : i + 1], torch.ones_like(C[:, :, :1]),
                        None, None, leaf["bias"], self.softplus,
                    )[..., -1]
                    for i in range(self.states)
                ],
                -1,
            )  # fmt: skip
            results["last_state"] = last.detach()
            loss = loss + (last * t["grad_last"].double()).sum()
        loss.backward()
        return results | {f"d_{k}": v.grad for k, v in leaf.items() if v is not None}


def _double_leaf(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().double().requires_grad_()


def _reference(function: Any, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
    leaf = {k: _double_leaf(v) for k, v in t.items() if k != "grad"}
    out = function(*leaf.values())
    out.backward(t["grad"].double())
    return {"out": out.detach()} | {f"d_{k}": v.grad for k, v in leaf.items() if v is not None}


def _named(out: Tensor, names: tuple[str, ...], grads: Any, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
    results = {"out": out}
    for name, grad in zip(names, grads, strict=True):
        if t[name] is None:
            assert grad.numel() == 0, f"d_{name} must be empty"
        else:
            assert grad.dtype == t[name].dtype and grad.shape == t[name].shape and grad.is_contiguous(), name
            results[f"d_{name}"] = grad
    return results


def compare(case: Case, got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every array within the tolerance of the case's dtype, relative to the array's largest magnitude."""
    assert got.keys() == expected.keys()
    worst = {}
    for name, want in expected.items():
        if want.numel() == 0:
            continue
        have = got[name].detach().cpu().double()
        scale = max(float(want.abs().max()), 1e-6)
        error = float((have - want).abs().max()) / scale
        worst[name] = error if error == error else float("inf")
    bad = {k: f"{v:.2e}" for k, v in worst.items() if v > TOLERANCE[case.dtype]}
    assert not bad, f"{case.id}: relative errors {bad}, allowed {TOLERANCE[case.dtype]}"


F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16

DCN = [
    *(Dcn(dtype) for dtype in (F64, F32, F16, BF16)),
    *(Dcn(dtype, kernel=(3, 3), pad=(1, 1), mask=True) for dtype in (F64, F32, F16, BF16)),
    *(Dcn(BF16, wide_offset=a, wide_mask=b, mask=True) for a in (False, True) for b in (False, True)),
    *(Dcn(F32, channels=c, group=g) for c, g in ((1, 1), (3, 5), (8, 1), (24, 3), (32, 2), (5, 3))),
    *(Dcn(BF16, channels=c, group=g) for c, g in ((1, 4), (8, 6), (24, 2), (64, 1), (16, 8))),
    Dcn(F64, kernel=(3, 3), stride=(2, 1), pad=(1, 2), dilation=(1, 2), height=9, width=8, mask=True, scale=0.7),
    Dcn(F64, kernel=(3, 3), pad=(1, 1), remove_center=True, scale=2.0, mask=True),
    Dcn(F64, kernel=(2, 4), channels=3, height=6, width=9),
    Dcn(F32, kernel=(5, 5), pad=(2, 2), height=4, width=3),
    Dcn(F32, height=1, width=1),
    Dcn(F32, height=1, width=40),
    Dcn(F32, height=40, width=1),
    Dcn(F32, batch=0),
    Dcn(F32, channels=0),
    Dcn(F32, batch=1, reach=50.0),
    Dcn(F64, reach=0.4, batch=3),
    Dcn(BF16, height=8, width=32, group=4, batch=1),
    Dcn(F32, height=12, width=96, group=1, batch=1),
    Dcn(BF16, height=16, width=80, group=1, channels=8, batch=1, reach=5.0),  # several segments, sums kept in fp32
    Dcn(F64, height=20, width=40, group=1, channels=2, batch=1),
]
SAMPLE = [
    *(Sample(dtype) for dtype in (F64, F32, F16, BF16)),
    *(Sample(dtype, weight=False) for dtype in (F64, F32, BF16)),
    Sample(F16, wide_loc=False),
    Sample(BF16, channels=16, queries=130),
    Sample(F32, channels=1, heads=1),
    Sample(F32, queries=1, points=1),
    Sample(F32, height=1, width=9),
    Sample(F32, height=9, width=1),
    Sample(F32, batch=0),
    Sample(F32, queries=0),
    Sample(F32, channels=0),
    Sample(F64, reach=8.0),
    Sample(BF16, queries=700, points=2, heads=1),
    Sample(F32, queries=600, points=2, batch=1, channels=6),
    Sample(F64, queries=300, points=2, batch=1, weight=False),
]
SCAN = [
    *(Scan(d, channels_last=c, reverse=r) for d in (F64, F32, F16, BF16) for c in (False, True) for r in (False, True)),
    *(
        Scan(d, states=3, z=True, channels_last=c, reverse=r)
        for d in (F64, BF16)
        for c in (False, True)
        for r in (False, True)
    ),
    *(Scan(F32, length=n, channels_last=c) for n in (1, 2, 31, 64, 65, 255, 257) for c in (False, True)),
    *(Scan(BF16, length=n, channels_last=c, dim=70) for n in (1, 8, 63, 64, 136, 256) for c in (False, True)),
    *(Scan(F16, length=n, reverse=True, channels_last=c) for n in (24, 72, 130) for c in (False, True)),
    *(Scan(F32, states=16, z=True, last_state=True, channels_last=c, length=70) for c in (False, True)),
    *(Scan(F64, states=2, groups=3, last_state=True, length=n, reverse=r) for n in (5, 70) for r in (False, True)),
    *(Scan(d, groups=2, dim=12, last_state=True, channels_last=c) for d in (F32, BF16) for c in (False, True)),
    *(
        Scan(d, slices=True, wide_maps=w, channels_last=c)
        for d in (F32, BF16)
        for w in (False, True)
        for c in (False, True)
    ),
    Scan(F64, D=False, bias=False),
    Scan(F64, softplus=False),
    Scan(F64, D=False, z=True, softplus=False, bias=False),
    Scan(F32, dim=1),
    Scan(F32, dim=33, channels_last=True),
    Scan(BF16, dim=33, channels_last=True),
    Scan(BF16, dim=7),
    Scan(BF16, dim=66, groups=2, channels_last=True),
    Scan(F32, batch=0),
    Scan(F32, size=8.0, length=40),
    Scan(BF16, size=8.0, length=40, channels_last=True),
    Scan(F32, states=40, length=20),
    Scan(F32, states=90, length=70),
    Scan(F64, states=70, length=40, last_state=True),
    Scan(BF16, z=True, channels_last=True, dim=64),
]
ALL: list[Case] = [*DCN, *SAMPLE, *SCAN]
