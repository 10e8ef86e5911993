"""Losses against stored reference numbers, published values and hand calculation."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_check import check_op, load_cases
from reference_numbers import tensor

from openrec.errors import ConfigError
from openrec.losses import build_loss

CASES = {k: c for k, c in load_cases("index_heads.json").items() if c["kind"] == "op"}


def call(inputs, args):
    loss = build_loss(args)
    label, length = inputs["label"], inputs.get("label_length", inputs.get("length"))
    if args["name"] == "GTCLoss":
        predictions = {"ctc_pred": inputs["predicts"], "gtc_pred": [{"loss": inputs["gtc_loss"]}, None]}
        return loss(predictions, [None, None, label, length])
    return loss(inputs["predicts"], [None, label, length])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_reference(case, dtype):
    check_op(case, call, dtype)


LOGITS = 3 * tensor(2, 12, 95, stream=77)
LABEL, LENGTH = torch.tensor([[11, 12, 13, 0, 0], [18, 15, 22, 22, 25]]), torch.tensor([3, 5])


def test_ctc_published_numbers():
    plain = build_loss({"name": "CTCLoss", "zero_infinity": True})
    focal = build_loss({"name": "CTCLoss", "zero_infinity": True, "use_focal_loss": True})
    assert float(plain(LOGITS, [None, LABEL, LENGTH])["loss"]) == pytest.approx(56.034458713)
    assert float(focal(LOGITS, [None, LABEL, LENGTH])["loss"]) == pytest.approx(56.034458482)
    # five frames cannot hold "hello": that sample counts as 0
    assert float(plain(LOGITS[:, :5], [None, LABEL, LENGTH])["loss"]) == pytest.approx(11.753917117)
    infinite = build_loss({"name": "CTCLoss"})
    assert math.isinf(infinite(LOGITS[:, :5], [None, LABEL, LENGTH])["loss"])


def test_ctc_takes_features_and_half_precision():
    loss = build_loss({"name": "CTCLoss"})
    exact = loss(LOGITS.float(), [None, LABEL, LENGTH])["loss"]
    assert torch.equal(loss((torch.zeros(1), LOGITS.float()), [None, LABEL, LENGTH])["loss"], exact)
    half = loss(LOGITS.bfloat16(), [None, LABEL, LENGTH])["loss"]
    assert half.dtype == torch.float32 and float(half) == pytest.approx(float(exact), rel=0.01)


def test_gtc_weights():
    gtc = {"name": "GTCLoss", "gtc_loss": {"name": "SMTRLoss"}, "gtc_weight": 2.0, "ctc_weight": 0.5}
    predictions = {"ctc_pred": LOGITS, "gtc_pred": [{"loss": torch.tensor(3.0)}, None]}
    out = build_loss(gtc)(predictions, [None, None, LABEL, LENGTH])
    assert float(out["ctc_loss"]) == pytest.approx(56.034458713) and float(out["gtc_loss"]) == 3.0
    assert float(out["loss"]) == pytest.approx(2 * 3.0 + 0.5 * 56.034458713)
    with pytest.raises(ConfigError, match="SMTRLoss"):
        build_loss({"name": "GTCLoss", "gtc_loss": {"name": "SMTRLos"}})


def test_ar_ignores_padding_only():
    label = torch.tensor([[5, 1, 2, 0, 6, 6], [5, 3, 0, 6, 6, 6]])  # 4 characters: <s> 5, <pad> 6
    logits = torch.randn(2, 3, 5)
    expected = F.cross_entropy(torch.cat((logits[0], logits[1, :2])), torch.tensor([1, 2, 0, 3, 0]))
    out = build_loss({"name": "ARLoss", "label_smoothing": 0.0})(logits, [None, label, torch.tensor([2, 1])])
    torch.testing.assert_close(out["loss"], expected)


@pytest.mark.parametrize("smoothing", [False, True])
def test_ce_of_equal_logits_is_the_log_of_their_number(smoothing):
    loss = build_loss({"name": "CELoss", "smoothing": smoothing})
    assert float(loss(torch.zeros(4, 5), [None, torch.tensor([[0], [1], [4], [2]])])["loss"]) == pytest.approx(
        math.log(5)
    )
    assert float(loss(torch.zeros(4, 5), [None, torch.tensor([0, 1, 4, 2])])["loss"]) == pytest.approx(math.log(5))


def test_ce_smoothing_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    p = logits.log_softmax(-1)[0]
    out = build_loss({"name": "CELoss", "smoothing": True})(logits, [None, torch.tensor([[1]])])["loss"]
    torch.testing.assert_close(out, -(0.9 * p[1] + 0.1 * p.mean()))


def test_ce_of_sequences():
    label, length = torch.tensor([[5, 1, 2, 0, 6], [5, 3, 0, 6, 6]]), torch.tensor([2, 1])
    logits = torch.randn(2, 3, 5)
    one = build_loss({"name": "CELoss"})(logits, [None, label, length])["loss"]
    torch.testing.assert_close(
        one, build_loss({"name": "ARLoss", "label_smoothing": 0.0})(logits, [None, label])["loss"]
    )
    whole = build_loss({"name": "CELoss", "with_all": True})
    whole(torch.randn(2, 5, 7), [None, label, length])
    with pytest.raises(ConfigError, match="do not match"):
        whole(logits, [None, label, length])
