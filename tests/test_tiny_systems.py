"""Every ``*_tiny.yml``: twenty steps learn something and survive a checkpoint; given time it learns words by heart."""

import copy
import math
from pathlib import Path

import pytest
import torch

from openrec.checkpoint import read_checkpoint, save_checkpoint
from openrec.config import load_config, resolve_charset
from openrec.data import build_loader
from openrec.engine.distributed import World
from openrec.engine.evaluation import fill_model
from openrec.engine.evaluator import Evaluator
from openrec.losses import build_loss
from openrec.modeling import build_model
from openrec.modeling.layers import DropPath
from openrec.optimizer import build_optimizer
from openrec.postprocess import build_post_process

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs" / "rec").glob("**/*_tiny.yml"))
WORDS = 16
# Optimizer steps in which a system knows its sixteen words; the others need at most STEPS.
STEPS = 400
STEPS_OF = {"dat": 600, "dino": 800, "draw_attn": 800, "svtrv2_dat": 600}


class Tiny:
    """A tiny system on sixteen rendered words."""

    def __init__(self, path, steps):
        sizes = [
            f"{s}.{k}"
            for s in ("Train", "Eval")
            for k in (f"dataset.size={WORDS}", f"loader.batch_size_per_card={WORDS}")
        ]
        self.config = load_config(path, [*sizes, "Train.loader.num_workers=0", "Eval.dataset.split=train"])
        torch.manual_seed(5)
        self.charset = resolve_charset(self.config)
        self.post_process = build_post_process(self.config["PostProcess"], self.config["Global"], self.charset)
        self.config["Architecture"]["Decoder"]["out_channels"] = self.post_process.get_character_num()
        self.model = self.new_model()
        self.loss = build_loss(self.config["Loss"])
        self.optimizer, self.schedule = build_optimizer(
            self.config["Optimizer"], self.config["LRScheduler"], 20, math.ceil(steps / 20), self.model
        )
        loader = build_loader(self.config, "Train", charset=self.charset, seed=1)
        self.batch = next(iter(loader.epoch(1)))
        loader.close()

    def new_model(self):
        return build_model(copy.deepcopy(self.config["Architecture"]))

    def step(self):
        self.model.train()
        tensors = self.batch.tensors
        losses = self.loss(self.model(tensors[0], data=tensors[1:]), tensors)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config["Global"]["grad_clip_val"] or 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return losses["loss"].item()

    @torch.no_grad()
    def accuracy(self):
        self.model.eval()
        read = self.post_process(self.model(self.batch.tensors[0]))
        read = read[0] if isinstance(read[0], list) else read
        return sum(text == truth.lower() for (text, _), truth in zip(read, self.batch.texts)) / WORDS

    def evaluation(self, model):
        loader = build_loader(self.config, "Eval", charset=self.charset, seed=1)
        numbers = Evaluator(loader, self.post_process, self.config["Metric"], World(torch.device("cpu"))).evaluate(
            model
        )
        loader.close()
        return {k: v for k, v in numbers.items() if k != "fps"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_twenty_steps(path, tmp_path):
    tiny = Tiny(path, steps=20)
    losses = [tiny.step() for _ in range(20)]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0], losses
    before = tiny.evaluation(tiny.model)
    file = tmp_path / "tiny.pth"
    state = {"state_dict": tiny.model.state_dict(), "config": tiny.config, "charset": tiny.charset.state()}
    save_checkpoint({**state, "epoch": 1, "metrics": {}}, file)
    torch.manual_seed(6)
    again = tiny.new_model()
    fill_model(again, read_checkpoint(file), file, tiny.charset.characters)
    assert tiny.evaluation(again) == before
    image = tiny.batch.tensors[0][:2]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(image), tiny.model.eval()(image), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_learns_sixteen_words_by_heart(path):
    steps = STEPS_OF.get(path.stem.removesuffix("_tiny"), STEPS)
    tiny, best = Tiny(path, steps), 0.0
    for module in tiny.model.modules():  # by heart: no block is left out at random
        if isinstance(module, DropPath):
            module.p = 0.0
    for number in range(1, steps + 1):
        tiny.step()
        if number % 25 == 0:
            best = max(best, tiny.accuracy())
            if best == 1:
                print(f"{path.stem}: {number} steps")
                return
    pytest.fail(f"{path.stem}: {100 * best:.0f} % after {steps} steps")
