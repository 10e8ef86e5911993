"""DINO's matching, losses and readings."""

import itertools

import numpy as np
import pytest
import torch

from openrec.charset import Charset
from openrec.errors import ConfigError
from openrec.losses import build_loss
from openrec.losses.dino_loss import reading_steps, with_blank
from openrec.losses.matching import assign
from openrec.modeling.decoders.dino_denoising import noisy_queries
from openrec.postprocess.dino_postprocess import DINOLabelDecode

CHARSET = Charset(tuple("abcdehlo"))


def make(text="hello", queries=9, sure=12.0, order=None):
    """A perfect detector of one text: training predictions and batch. Other queries lie at the end and are silent."""
    n, size = len(CHARSET), len(text)
    ids = CHARSET.encode(text)
    logits = torch.full((2, 1, queries, n), -sure)
    boxes = torch.rand(2, 1, queries, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.75
    true = torch.full((1, queries, 4), 0.5)
    for i, c in enumerate(ids):
        true[0, i] = torch.tensor([(i + 0.5) / (size + 3), 0.5, 0.08, 0.6])
        q = i if order is None else order[i]
        logits[:, :, q, c], boxes[:, :, q] = sure, true[0, i]
    label = torch.full((1, queries), -1)
    label[0, :size] = torch.tensor(ids)
    batch = [torch.zeros(1, 3, 4, 4), label, torch.tensor([size]), true, torch.tensor([True])]
    return {"logits": logits.requires_grad_(), "boxes": boxes.requires_grad_()}, batch


def evaluated(predictions):
    return torch.cat((predictions["logits"][-1].sigmoid(), predictions["boxes"][-1]), -1).detach()


@pytest.mark.parametrize("seed", range(4))
def test_assignment_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(40, 4, 6))
    cost[::3] = cost[::3].round()  # ties
    count = rng.integers(0, 5, 40)
    found = assign(cost, count)
    for c, n, own in zip(cost, count, found):
        assert (own[n:] == -1).all() and len(set(own[:n])) == n
        best = min((sum(c[i, q] for i, q in enumerate(p)) for p in itertools.permutations(range(6), int(n))), default=0)
        assert c[range(n), own[:n]].sum() == pytest.approx(best, abs=1e-9)


def test_assignment_by_hand_and_when_it_is_tight():
    # the second row takes the first row's favourite, which costs less in all
    assert assign(np.array([[[1.0, 2.0], [1.0, 9.0]]]), np.array([2])).tolist() == [[1, 0]]
    square = np.random.default_rng(0).normal(size=(30, 12, 12))
    assert all(sorted(row) == list(range(12)) for row in assign(square, np.full(30, 12)))
    with pytest.raises(ConfigError, match="label of 3 characters, but 2 queries"):
        assign(np.zeros((1, 3, 2)), np.array([3]))
    assert assign(np.full((1, 2, 3), np.nan), np.array([2])).min() >= 0


# ---- the whole loss, written out ------------------------------------------------------------------
# Plain loops over images, queries and pairs, and the best of all matchings; nothing of openrec.losses.

LABELS = torch.tensor([[1, 2, 3, -1], [4, 4, -1, -1], [5, 6, 7, 0], [2, -1, -1, -1], [3, 0, 1, -1], [6, 6, 6, 2]])
LENGTH, HAS_BOX = torch.tensor([3, 2, 4, 1, 3, 4]), torch.tensor([True, True, False, True, True, True])


def full_case(queries=5, layers=3):
    """Random predictions of every kind as leaves, and the batch; the third image has no boxes."""
    torch.manual_seed(0)
    b = len(LABELS)

    def guess(*shape):
        logits = torch.randn(*shape, len(CHARSET)).double() * 2
        boxes = torch.cat((torch.rand(*shape, 2) * 0.5 + 0.25, torch.rand(*shape, 2) * 0.2 + 0.1), -1).double()
        return {"logits": logits.requires_grad_(), "boxes": boxes.requires_grad_()}

    true = guess(b, 4)["boxes"].detach()
    noisy = noisy_queries(
        LABELS, LENGTH, true, HAS_BOX, classes=len(CHARSET), number=10, label_noise=1.0, box_noise=0.4
    )
    out = {**guess(layers, b, queries), "proposals": guess(b, queries)}
    out["denoising"] = {**guess(layers, b, noisy.labels.shape[1]), "noisy": noisy}
    return out, [torch.zeros(b, 3, 4, 4), LABELS, LENGTH, true, HAS_BOX]


def hand_giou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    ends = [((p - r / 2, p + r / 2), (q - s / 2, q + s / 2)) for p, r, q, s in ((ax, aw, bx, bw), (ay, ah, by, bh))]
    both = [max(min(p[1], q[1]) - max(p[0], q[0]), 0.0 * p[0]) for p, q in ends]
    hull = [max(p[1], q[1]) - min(p[0], q[0]) for p, q in ends]
    inter, hull = both[0] * both[1], hull[0] * hull[1]
    union = aw * ah + bw * bh - inter
    return inter / union - (hull - union) / hull


def hand_focal(logit, wanted):
    p = logit.sigmoid()
    return 0.25 * (1 - p) ** 2 * -p.log() if wanted else 0.75 * p**2 * -(1 - p).log()


def hand_cost(logits, box, label, true):
    found = hand_focal(logits[label], True) - hand_focal(logits[label], False)
    return float(2 * found + 5 * (box - true).abs().sum() - 2 * hand_giou(box, true))


def hand_match(logits, boxes, labels, true):
    costs = [[hand_cost(lo, bo, label, t) for lo, bo in zip(logits, boxes)] for label, t in zip(labels, true)]
    every = itertools.permutations(range(len(logits)), len(labels))
    return min(every, key=lambda queries: sum(costs[i][q] for i, q in enumerate(queries)))


def hand_loss(logits, boxes, owner, labels, true):
    """Of the queries of one image; ``owner``: character by query, the others must find nothing."""
    total = 0.0
    for q, (row, box) in enumerate(zip(logits, boxes)):
        i = owner.get(q)
        total += sum(hand_focal(x, i is not None and c == labels[i]) for c, x in enumerate(row))
        if i is not None:
            total += 5 * (box - true[i]).abs().sum() + 2 * (1 - hand_giou(box, true[i]))
    return total


def hand_losses(out, batch):
    """(of layers, of proposals, of denoising), and the queries of all characters by layer and image."""
    _, label, length, true, has_box = batch
    known = [b for b in range(len(label)) if has_box[b]]
    count = sum(int(length[b]) for b in known)
    groups = out["denoising"]["noisy"].groups
    sums, matched = [0.0, 0.0, 0.0], []
    found = [*zip(out["logits"], out["boxes"]), (out["proposals"]["logits"], out["proposals"]["boxes"])]
    for number, (logits, boxes) in enumerate(found):
        for b in known:
            own, places = label[b, : length[b]].tolist(), true[b, : length[b]]
            queries = hand_match(logits[b].detach(), boxes[b].detach(), own, places)
            matched.append(queries)
            owner = {q: i for i, q in enumerate(queries)}
            sums[number == len(found) - 1] += hand_loss(logits[b], boxes[b], owner, own, places) / count
    for logits, boxes in zip(out["denoising"]["logits"], out["denoising"]["boxes"]):
        for b in known:
            own, places = label[b, : length[b]].tolist(), true[b, : length[b]]
            used = [(g, half, i) for g in range(groups) for half in (0, 1) for i in range(length[b])]
            at = [(2 * g + half) * 4 + i for g, half, i in used]  # the longest text has 4 characters
            owner = {k: i for k, (_, half, i) in enumerate(used) if half == 0}
            sums[2] += hand_loss(logits[b, at], boxes[b, at], owner, own, places) / (count * groups)
    return sums, matched


def test_the_whole_loss_and_its_gradients_equal_one_written_out():
    out, batch = full_case()
    parts = build_loss({"name": "DINOLoss"})(out, batch)
    (layers, proposals, denoising), matched = hand_losses(out, batch)
    torch.testing.assert_close(parts["proposal_loss"], proposals, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts["dn_loss"], denoising, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts["loss"], layers + proposals + denoising, rtol=1e-5, atol=0)
    leaves = [part[k] for part in (out, out["proposals"], out["denoising"]) for k in ("logits", "boxes")]
    wanted = torch.autograd.grad(layers + proposals + denoising, leaves)
    for got, want in zip(torch.autograd.grad(parts["loss"], leaves), wanted):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    before, last = sum(matched[5:10], ()), sum(matched[10:15], ())  # five images with boxes, three layers
    assert parts["match_kept"].item() == pytest.approx(sum(p == q for p, q in zip(before, last)) / len(last))
    assert 0 < parts["match_kept"] < 1


def test_matching_is_the_cheapest_by_the_costs_of_dino():
    torch.manual_seed(1)
    b, queries, texts = 80, 5, 3
    logits, boxes = torch.randn(1, b, queries, 8).double() * 2, torch.rand(1, b, queries, 4).double() * 0.4 + 0.3
    labels, true = torch.randint(8, (b, texts)), torch.rand(b, texts, 4).double() * 0.4 + 0.3
    found = build_loss({"name": "DINOLoss"}).match(logits, boxes, labels, true, torch.full((b,), texts))[0]
    for i in range(b):
        assert tuple(found[i].tolist()) == hand_match(logits[0, i], boxes[0, i], labels[i].tolist(), true[i]), i


def test_matching_finds_shuffled_queries():
    order = [4, 2, 7, 0, 5]
    predictions, batch = make(order=order)
    loss = build_loss({"name": "DINOLoss"})
    found = loss.match(predictions["logits"], predictions["boxes"], batch[1][:, :5], batch[3][:, :5], batch[2])
    assert found.tolist() == [[order]] * 2


def test_a_perfect_prediction_costs_nothing():
    predictions, batch = make()
    parts = build_loss({"name": "DINOLoss"})(predictions, batch)
    assert parts["class_loss"] < 1e-6 and parts["bbox_loss"] == 0 and parts["giou_loss"].abs() < 1e-5
    assert parts["loss"] < 1e-4


def test_losses_are_per_true_box_and_add_up_over_layers():
    predictions, batch = make()
    moved = predictions["boxes"].detach().clone()
    moved[..., 0] += 0.01
    parts = build_loss({"name": "DINOLoss"})({**predictions, "boxes": moved}, batch)
    assert parts["bbox_loss"].item() == pytest.approx(0.01, rel=1e-3)
    twice = {k: torch.cat((v, v), 1) for k, v in {**predictions, "boxes": moved}.items()}
    doubled = build_loss({"name": "DINOLoss"})(twice, [torch.cat((t, t)) for t in batch])
    torch.testing.assert_close(doubled["loss"], parts["loss"])
    one = {k: v[:1] for k, v in {**predictions, "boxes": moved}.items()}
    torch.testing.assert_close(build_loss({"name": "DINOLoss"})(one, batch)["loss"] * 2, parts["loss"])


def test_a_batch_without_boxes_has_no_gradient_but_a_loss():
    predictions, batch = make(sure=1.0)
    batch[4] = torch.tensor([False])
    parts = build_loss({"name": "DINOLoss"})(predictions, batch)
    parts["loss"].backward()
    assert parts["loss"] == 0 and not predictions["logits"].grad.any() and not predictions["boxes"].grad.any()


def test_boxes_without_area_keep_the_loss_finite():
    predictions, batch = make()
    flat = (predictions["boxes"].detach() * torch.tensor([1.0, 1.0, 0.0, 0.0])).requires_grad_()
    build_loss({"name": "DINOLoss"})({**predictions, "boxes": flat}, batch)["loss"].backward()
    assert flat.grad.isfinite().all()


def test_ctc_reads_repeated_letters_in_the_order_of_the_boxes():
    predictions, batch = make("hello", order=[3, 1, 0, 2, 4], sure=16.0)
    parts = build_loss({"name": "DINOLoss", "mode": "ctc"})(predictions, batch)
    assert parts["loss"] < 0.05
    parts["loss"].backward()
    assert not predictions["boxes"].grad.any() and predictions["logits"].grad[-1].any()
    assert not predictions["logits"].grad[0].any(), "the last layer only"
    for read in ("ctc", "nms"):
        post = DINOLabelDecode(charset=CHARSET, read=read)
        ((text, score),) = post(evaluated(predictions))
        assert text == "hello" and score > 0.99
        (item,) = post.decode_detailed(evaluated(predictions))
        assert item.positions == [3, 1, 0, 2, 4] and len(item.char_scores) == 5
    swapped = evaluated(predictions)
    swapped[0, [3, 4], -4] = swapped[0, [4, 3], -4]
    assert post(swapped)[0][0] == "oellh" and post.labels(batch) == [("hello", 1.0)]


def test_blank_takes_what_is_left_and_never_nothing():
    p = with_blank(torch.tensor([[0.2, 0.3], [0.9, 0.9], [0.0, 0.0]]))
    torch.testing.assert_close(p.sum(-1), torch.ones(3))
    torch.testing.assert_close(p[:, 0], torch.tensor([0.5, 0.003, 1.0]))
    assert reading_steps(torch.zeros(2, 5, 3), torch.rand(2, 5, 4)).shape == (2, 10, 4)


def test_joint_takes_detection_where_there_are_boxes_and_ctc_elsewhere():
    predictions, batch = make(sure=1.0)
    two = {k: torch.cat((v, v), 1).detach().requires_grad_() for k, v in predictions.items()}
    both = [torch.cat((t, t)) for t in batch]
    both[4] = torch.tensor([True, False])
    parts = build_loss({"name": "DINOLoss", "mode": "joint"})(two, both)
    parts["loss"].backward()
    alone = build_loss({"name": "DINOLoss", "mode": "ctc"})(predictions, batch)["loss"]
    torch.testing.assert_close(parts["ctc_loss"], alone)
    det = build_loss({"name": "DINOLoss"})(predictions, batch)["loss"]
    torch.testing.assert_close(parts["loss"], det + 0.5 * alone)
    assert two["boxes"].grad[:, 0].any() and not two["boxes"].grad[:, 1].any()


def test_reading_keeps_the_best_of_overlapping_boxes_and_can_follow_a_slope():
    predictions, _ = make("abc", queries=4, sure=3.0)
    found = evaluated(predictions)
    found[0, 3] = found[0, 1] * torch.tensor([0.9] * 8 + [1.01, 1, 1, 1])
    found[0, 3, 3] = 0.99  # a better "d" over "b"
    assert DINOLabelDecode(charset=CHARSET)(found)[0][0] == "adc"
    steep = evaluated(predictions)[:, :3]
    steep[0, :, 8:10] = torch.tensor([[0.1, 0.1], [0.2, 0.5], [0.3, 0.9]])
    assert DINOLabelDecode(charset=CHARSET, sort="angle")(steep)[0][0] == "abc"


def test_wrong_options():
    with pytest.raises(ConfigError, match="expected one of det, ctc, joint"):
        build_loss({"name": "DINOLoss", "mode": "boxes"})
    with pytest.raises(ConfigError, match="read nms or ctc"):
        DINOLabelDecode(charset=CHARSET, read="greedy")


def test_a_recognizer_tells_where_every_character_is(tmp_path):
    import reading_case as case

    from openrec.checkpoint import save_checkpoint
    from openrec.config import load_config
    from openrec.reading.loading import ModelCard
    from openrec.recognizer import load

    config = load_config(case.ROOT / "configs/rec/dino/dino_tiny.yml")
    config["Global"]["device"], config["PostProcess"]["score_threshold"] = "cpu", 0.005
    charset = Charset.load()
    torch.manual_seed(0)
    model = ModelCard.from_checkpoint({"config": config, "charset": charset.state()}, "here").build()
    state = {"config": config, "charset": charset.state(), "state_dict": model.state_dict()}
    save_checkpoint(state, tmp_path / "m.pth")
    (text,) = load(tmp_path / "m.pth", device="cpu")(case.picture(1, 48, 32))  # half of the input is padding
    boxes = np.array(text.char_boxes)
    assert len(boxes) == len(text.text) == len(text.char_x) > 0
    assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2:] >= boxes[:, :2]).all()
    assert boxes[:, 2].max() > 0.9, "shares of the picture, not of the padded input"
    assert text.as_dict()["char_boxes"] == text.char_boxes
