"""A small model with every kind of parameter group, and its optimizer."""

import torch
from torch import nn

from openrec.optimizer import build_optimizer


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Linear(3, 4)
        self.body = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.A_log = nn.Parameter(torch.zeros(4, 2))
        self.A_log._no_weight_decay = True
        self.frozen = nn.Parameter(torch.zeros(4, 2), requires_grad=False)

    def no_weight_decay(self):
        return {"patch_embed"}


def build(optimizer=None, scheduler=None, epochs=20, steps=10, model=None):
    return build_optimizer(
        {"name": "AdamW", "lr": 1e-3, **(optimizer or {})},
        scheduler or {"name": "ConstLR"},
        epochs,
        steps,
        model or Toy(),
    )
