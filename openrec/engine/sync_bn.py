"""BatchNorm over the samples of all processes, also on CPUs.

``torch.nn.SyncBatchNorm`` works on GPUs only. This one uses an all-reduce that gradients pass through, so
that N processes compute exactly what one process with all their samples would.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_counted = True


@contextmanager
def left_out(yes: bool) -> Any:
    """Inside the block, this process's samples stand in for none: they do not enter the statistics."""
    global _counted
    before, _counted = _counted, not yes
    try:
        yield
    finally:
        _counted = before


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class SyncedBatchNorm(_BatchNorm):
    """``nn.BatchNorm*d`` with the statistics of all processes; same parameters and buffers.

    Input ``[B, C, ...]``; B may differ between processes.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [B, C, ...], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        x = input.float()
        rest = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        share = 1.0 if _counted else 0.0
        local = x.new_tensor([share * x.numel() / x.shape[1]])
        sums = _SumOverRanks.apply(torch.cat((x.sum(rest) * share, local)))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        var = _SumOverRanks.apply(centred.square().sum(rest) * share) / count
        self._track(mean.detach(), var.detach() * (count / (count - 1).clamp_min(1)))
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


def use_synced_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` with every BatchNorm replaced; names in its state dict stay the same."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncedBatchNorm):
        synced = SyncedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        synced.load_state_dict(module.state_dict())
        for name, parameter in module.named_parameters(recurse=False):
            setattr(synced, name, parameter)  # the same object: flags on it stay
        return synced.to(next(iter(module.state_dict().values())).device).train(module.training)
    for name, child in module.named_children():
        setattr(module, name, use_synced_batch_norm(child, device))
    return module
