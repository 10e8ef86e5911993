"""Every evaluation sample is scored; OpenOCR's rule is the second line."""

import pytest
import torch
from torch import nn

from openrec.data.types import Batch
from openrec.engine.distributed import World
from openrec.engine.evaluator import Evaluator, split_rule
from openrec.postprocess import build_post_process

WORLD = World(torch.device("cpu"))


class Says(nn.Module):
    """Reads what its images spell: class numbers per frame."""

    def forward(self, x, data=None):
        assert not self.training
        return torch.nn.functional.one_hot(x.long(), 37).float()


class GtcSays(Says):
    def forward(self, x, data=None):
        ids = x.long()
        ctc = torch.nn.functional.one_hot(ids, 37).float()
        steps = torch.nn.functional.one_hot(torch.where(ids == 0, 0, ids), 37).float()
        return {"gtc_pred": steps, "ctc_pred": ctc}


def frames(text):
    ids = [int(c) + 1 for c in text]
    return ids + [0] * (8 - len(ids))


class Loader:
    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch, start_batch=0):
        return iter(self.batches)


def batch(rows, gtc=False):
    """``rows``: (what the image spells, raw label, label in the tensors, excluded, unreadable)."""
    images = torch.tensor([frames(r[0]) for r in rows])
    labels = torch.tensor([frames(r[2]) for r in rows])
    length = torch.tensor([len(r[2]) for r in rows])
    tensors = [images, labels, length]
    if gtc:
        guide = torch.cat((torch.full((len(rows), 1), 37), labels, torch.zeros(len(rows), 1, dtype=torch.long)), 1)
        tensors = [images, guide, length, labels, length]
    names = [f"x:{i}" for i in range(len(rows))]
    return Batch(tensors, [r[1] for r in rows], names, [], [r[3] for r in rows], [r[4] for r in rows])


ROWS = [
    ("12", "12", "12", None, False),
    ("3", "3 !", "3", None, False),  # raw label differs from what is left after encoding
    ("45", "46", "46", None, False),
    ("0", "1234567890", "0", "too long", False),  # its dummy label is not what is scored
    ("7", "7", "7", None, True),  # a grey image that reads right by chance is wrong
    ("8", "", "8", "label is empty", True),  # nor is an unreadable image with an empty label right
]


@pytest.mark.parametrize("chunks", [1, 3])
def test_t5_t39_all_samples_count(chunks):
    decode = build_post_process({"name": "CTCLabelDecode"})
    step = len(ROWS) // chunks
    loader = Loader([batch(ROWS[i : i + step]) for i in range(0, len(ROWS), step)])
    evaluator = Evaluator(loader, decode, {"name": "RecMetric", "is_filter": False}, WORLD)
    model = Says().train()
    for _ in range(2):  # nothing is left over from the first time
        metrics = evaluator.evaluate(model)
        main, rule = split_rule(metrics)
        assert main["num_samples"] == 6 and main["correct"] == 1 and main["acc"] == pytest.approx(1 / 6, abs=1e-5)
        assert rule["num_samples"] == 3 and rule["acc"] == pytest.approx(2 / 3, abs=1e-5)
        assert main["fps"] > 0 and model.training


def test_both_branches_of_a_guided_model():
    config = {"name": "GTCLabelDecode", "gtc_label_decode": {"name": "ARLabelDecode"}}
    evaluator = Evaluator(
        Loader([batch(ROWS, gtc=True)]), build_post_process(config), {"name": "RecGTCMetric", "is_filter": False}, WORLD
    )
    main, rule = split_rule(evaluator.evaluate(GtcSays()))
    assert main["num_samples"] == 6 and main["acc"] == pytest.approx(1 / 6, abs=1e-5)
    assert main["gtc_acc"] == pytest.approx(1 / 6, abs=1e-5) and rule["gtc_acc"] == pytest.approx(2 / 3, abs=1e-5)
