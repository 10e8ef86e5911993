"""Hard attention: each character sees one cell, drawn in training, the likeliest in evaluation.

Xu et al., "Show, Attend and Tell", ICML 2015, learned with REINFORCE (Williams, Machine Learning 8, 1992): a draw has
no derivative, so the policy learns from the log-likelihood of the text that it led to, against a baseline. The
leave-one-out baseline is Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019; the Gumbel
estimator Jang et al., ICLR 2017.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.rnn_attn import Look, RNNAttnDecoder, State, Steps, one_of, real_steps
from openrec.modeling.decoders.soft_attn_decoder import Memory, SoftRead
from openrec.modeling.record import record, recording

MOMENTUM = 0.9  # of the moving baseline
SOFT_GAP_EVERY = 50  # training batches between two comparisons with the soft read, which cost a forward each


@dataclass(frozen=True)
class Estimator:
    """How ``HardAttnLoss`` is to weigh a batch."""

    sampled: bool  # whether cells were drawn: else there is no policy to reward
    baseline: str  # 'self', 'moving', 'learned', 'none'
    reward: str  # 'to_go' or 'sequence'
    lambda_r: float
    lambda_e: float


class HardRead(SoftRead):
    """State -> one cell. ``how``: 'argmax', 'sample', 'gumbel' or 'soft', the weighted mean."""

    def forward(self, state: State, memory: Memory, how: str = "argmax", temperature: float = 1.0) -> Look:
        scores = self.logits(state, memory) / temperature
        weights = scores.softmax(-1)
        if how == "soft":
            return Look(weights.to(memory.cells.dtype) @ memory.cells, weights)
        if how == "gumbel":  # one cell forwards, the softened draw backwards
            chosen = F.gumbel_softmax(scores, tau=1.0, hard=True)
            return Look(chosen.to(memory.cells.dtype) @ memory.cells, weights)
        if how == "argmax":
            cell, log_pi = weights.argmax(-1), None
        else:
            cell = torch.multinomial(weights.detach().flatten(0, 1), 1).view(weights.shape[:2])
            log_pi = scores.log_softmax(-1).gather(-1, cell.unsqueeze(-1)).squeeze(-1)
        rows = torch.arange(cell.shape[0], device=cell.device).unsqueeze(1)
        return Look(memory.cells[rows, cell], weights, log_pi)


class HardAttnDecoder(RNNAttnDecoder):
    """Arguments: see ``RNNAttnDecoder``, and

    Args:
        n_samples: readings of each image per training step.
        estimator: 'reinforce'; 'gumbel_st', straight-through Gumbel draws; 'soft', the soft read while training.
        baseline: what a reward is compared with: 'self', the mean of the image's other samples; 'moving', a running
            mean per step; 'learned', predicted from the state; 'none'.
        reward: 'to_go': a step is rewarded by its own and the later characters; 'sequence': by the whole text.
        lambda_r, lambda_e: weights of the policy's term and of its entropy.
        temperature: divides the scores of a draw.
        semi_sampling_p: probability that a training batch is read softly instead.
        warm_start_epochs: first epochs that are read softly: before the reader reads, rewards tell nothing. Counted
            where ``begin_epoch`` is called, as the training tool does.

    Training returns a mapping for ``HardAttnLoss``: ``logits [B, S, T, N + 1]``, ``log_pi``, ``entropy``
    ``[B, S, T]``, ``reward_mask [B, T]``, ``estimator``, and ``value [B, S, T]`` of a learned or moving baseline.
    """

    batches: Tensor
    moving: Tensor
    moving_known: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 256,
        attn_dim: int = 256,
        embed_dim: int = 256,
        cell: str = "lstm",
        max_len: int = 25,
        init_state: str = "mean",
        deep_output: bool = True,
        pos2d: bool = True,
        dropout: float = 0.1,
        map_size: Sequence[int] = (8, 32),
        neigh: int = 1,
        n_samples: int = 4,
        estimator: str = "reinforce",
        baseline: str = "self",
        reward: str = "to_go",
        lambda_r: float = 1.0,
        lambda_e: float = 0.002,
        temperature: float = 1.0,
        semi_sampling_p: float = 0.5,
        warm_start_epochs: int = 1,
    ):
        super().__init__(
            HardRead(in_channels, hidden, attn_dim, neigh=neigh), in_channels, out_channels, hidden=hidden,
            embed_dim=embed_dim, cell=cell, max_len=max_len, init_state=init_state, deep_output=deep_output,
            pos2d=pos2d, dropout=dropout, map_size=map_size,
        )  # fmt: skip
        one_of(self, "estimator", estimator, ("reinforce", "gumbel_st", "soft"))
        one_of(self, "baseline", baseline, ("self", "moving", "learned", "none"))
        one_of(self, "reward", reward, ("to_go", "sequence"))
        if estimator == "reinforce" and baseline == "self" and n_samples < 2:
            raise ConfigError(
                f"HardAttnDecoder: baseline self compares an image's samples, but n_samples is {n_samples}. "
                "Set Decoder.n_samples: 2 or more, or Decoder.baseline: moving."
            )
        if n_samples < 1 or not 0.0 <= semi_sampling_p <= 1.0 or temperature <= 0.0:
            raise ConfigError(
                "HardAttnDecoder: n_samples must be at least 1, semi_sampling_p in [0, 1] and temperature above 0, "
                f"got {n_samples}, {semi_sampling_p}, {temperature}."
            )
        self.n_samples, self.estimator, self.baseline, self.reward = n_samples, estimator, baseline, reward
        self.lambda_r, self.lambda_e, self.temperature = lambda_r, lambda_e, temperature
        self.semi_sampling_p, self.warm_start_epochs = semi_sampling_p, warm_start_epochs
        self.epoch = warm_start_epochs + 1  # where nobody counts epochs, there is no warm start
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))  # trained on
        self.compared = -1  # the last comparison with the soft read
        self.value_head: nn.Module | None = None
        if baseline == "learned":
            self.value_head = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1))
        if baseline == "moving":
            self.register_buffer("moving", torch.zeros(max_len + 1))
            self.register_buffer("moving_known", torch.zeros(max_len + 1))

    def begin_epoch(self, epoch: int) -> None:
        """Tell the 1-based number of the epoch that starts."""
        self.epoch = epoch

    def _how(self, number: int) -> str:
        """How training batch ``number`` is read: the same on every process, because their losses are averaged."""
        if self.estimator == "soft" or self.epoch <= self.warm_start_epochs:
            return "soft"
        if random.Random(number).random() < self.semi_sampling_p:
            return "soft"
        return "gumbel" if self.estimator == "gumbel_st" else "sample"

    def teach(self, x: Tensor, tokens: Tensor) -> dict[str, Any]:
        number = int(self.batches)
        self.batches += 1
        how = self._how(number)
        readings = 1 if how == "soft" else self.n_samples
        memory = self.read.memory(x)  # type: ignore[operator]
        steps = self._unroll(memory, self.start(x, readings), tokens, how)
        mask = real_steps(tokens, self.bos)
        weights = torch.stack([look.weights for look in steps.looks], 2)  # [B, S, T, H * W]
        output: dict[str, Any] = {
            "logits": steps.logits,
            "log_pi": self._log_pi(steps),
            "reward_mask": mask,
            "entropy": torch.special.entr(weights).sum(-1),
            "estimator": Estimator(how == "sample", self.baseline, self.reward, self.lambda_r, self.lambda_e),
        }
        if self.value_head is not None:
            output["value"] = self.value_head(steps.h.detach()).squeeze(-1)
        elif self.baseline == "moving" and how == "sample":
            output["value"] = self._moving_baseline(steps.logits, tokens, mask)
        if how == "sample" and number // SOFT_GAP_EVERY > self.compared:
            self.compared = number // SOFT_GAP_EVERY
            output["soft_gap"] = self._soft_gap(x, memory, tokens, steps, mask)
        return output

    def _unroll(self, memory: Memory, state: State, tokens: Tensor, how: str) -> Steps:
        return self.unroll(memory, state, tokens, partial(self.read, how=how, temperature=self.temperature))

    @staticmethod
    def _log_pi(steps: Steps) -> Tensor:
        first = steps.looks[0].log_pi
        if first is None:
            return steps.logits.new_zeros(steps.logits.shape[:3])
        return torch.stack([look.log_pi for look in steps.looks if look.log_pi is not None], 2)

    @torch.no_grad()
    def _moving_baseline(self, logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The baseline before this batch, ``[B, S, T]``; then let the batch, of all processes, move it."""
        t = mask.shape[1]
        if t > self.moving.shape[0]:
            raise ConfigError(
                f"HardAttnDecoder: a text of {t - 1} characters, but the moving baseline knows max_len {self.max_len}. "
                "Set Decoder.max_len to Global.max_text_length."
            )
        before = self.moving[:t].clone().expand(logits.shape[:3])
        totals = reward_to_go(rewards(logits, targets_of(tokens, mask), mask), self.reward)
        sums = torch.stack(((totals * mask.unsqueeze(1)).sum((0, 1)), mask.sum(0) * float(logits.shape[1])))
        if dist.is_available() and dist.is_initialized():
            sums = F.pad(sums, (0, self.moving.shape[0] - t))  # the longest text differs between processes
            dist.all_reduce(sums)
            t = self.moving.shape[0]
        mean, some = sums[0] / sums[1].clamp(min=1), (sums[1] > 0).to(sums.dtype)
        weight = (1 - MOMENTUM * self.moving_known[:t]) * some  # the first mean counts in full
        self.moving[:t] += weight * (mean - self.moving[:t])
        self.moving_known[:t] = torch.maximum(self.moving_known[:t], some)
        return before

    @torch.no_grad()
    def _soft_gap(self, x: Tensor, memory: Memory, tokens: Tensor, steps: Steps, mask: Tensor) -> Tensor:
        """Mean log-likelihood of a character under the soft read minus that under the sampled one."""
        soft = self._unroll(memory, self.start(x), tokens, "soft")
        target = targets_of(tokens, mask)
        means = [
            rewards(s.logits, target, mask).sum() / (mask.sum() * s.logits.shape[1]).clamp(min=1)
            for s in (soft, steps)
        ]  # fmt: skip
        return means[0] - means[1]

    def tell(self, looks: list[Look], memory: Any) -> None:
        super().tell(looks, memory)
        if looks and recording(self):
            cell = torch.stack([look.weights[:, 0].argmax(-1) for look in looks], 1)  # [B, T]
            h, w = memory.size
            centre = torch.stack(((cell % w + 0.5) / w, (cell // w + 0.5) / h), -1)
            record(self, "loc", centre[:, None, :, None])  # [B, 1, T, 1, 2]


def targets_of(tokens: Tensor, mask: Tensor) -> Tensor:
    """What follows each input token ``[B, T]``: the next one, at a text's end the end token; 0 where masked."""
    return F.pad(tokens[:, 1:], (0, 1)) * F.pad(mask[:, 1:], (0, 1))


def rewards(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Log-likelihood of each true character ``[B, S, T]``, 0 after the end; without gradient."""
    logits = logits.detach()
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    index = target[:, None, :, None].expand(*logits.shape[:3], 1)
    return log_p.gather(-1, index).squeeze(-1) * mask.unsqueeze(1)


def reward_to_go(reward: Tensor, kind: str) -> Tensor:
    """Steps' rewards ``[..., T]`` -> sums of each step and those after it ('to_go'), or of all ('sequence')."""
    if kind == "sequence":
        return reward.sum(-1, keepdim=True).expand_as(reward)
    return reward.flip(-1).cumsum(-1).flip(-1)
