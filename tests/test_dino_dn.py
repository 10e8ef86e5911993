"""Contrastive denoising: what is drawn, and that nobody learns the answer from it."""

import pytest
import torch

from openrec.modeling.decoders import build_decoder
from openrec.modeling.decoders.detr_coords import box_corners
from openrec.modeling.decoders.dino_denoising import denoising_mask, noisy_queries

SMALL = {
    "name": "DINODecoder", "in_channels": 8, "out_channels": 11, "hidden_dim": 16, "num_queries": 6, "num_levels": 1,
    "n_heads": 2, "enc_layers": 0, "dec_layers": 2, "ffn_dim": 24, "dn_number": 12, "max_len": 4,
}  # fmt: skip


def batch(length=(3, 2), has_box=(True, True)):
    boxes = torch.tensor([0.2, 0.5, 0.15, 0.6]).repeat(2, 4, 1)
    boxes[:, :, 0] += torch.arange(4) * 0.2
    return torch.tensor([[1, 2, 3, -1], [4, 5, -1, -1]]), torch.tensor(length), boxes, torch.tensor(has_box)


def draw(labels=0.5, boxes=0.4, number=12, data=None):
    return noisy_queries(*(data or batch()), classes=11, number=number, label_noise=labels, box_noise=boxes)


def decoder():
    torch.manual_seed(0)
    model = build_decoder(SMALL).double()
    for head in [*model.box_heads, model.proposal_box]:  # a head that moves boxes
        torch.nn.init.normal_(head[-1].weight, std=0.1)
    return model


def test_slots_of_groups_and_of_shorter_labels():
    noisy = draw()
    assert noisy.groups == 4 and noisy.labels.shape == (2, 2 * 3 * 4)
    assert noisy.slots.tolist() == [0, 1, 2] * 8
    assert noisy.positive[0].tolist() == [True] * 3 + [False] * 3 + ([True] * 3 + [False] * 3) * 3
    assert noisy.filled[1].tolist() == [True, True, False] * 8
    assert (noisy.boxes[1, 2::3] == 0.5).all() and (noisy.labels[1, 2::3] == 11).all()


def test_nothing_to_draw_from():
    assert draw(data=batch(has_box=(False, False))) is None
    assert draw(data=batch(length=(0, 0))) is None
    assert draw(number=0) is None
    assert draw(number=1).groups == 1
    half = draw(data=batch(has_box=(True, False)))
    assert half.filled[0].all() and not half.filled[1].any()


def test_labels_do_flip_and_as_often_as_asked():
    torch.manual_seed(0)
    noisy = draw(labels=0.5, number=30000)
    true = batch()[0][0, noisy.slots]
    # a new label is the old one once in eleven times
    rate, n = (noisy.labels[0] != true).float().mean().item(), len(true)
    expected = 0.25 * 10 / 11
    assert abs(rate - expected) < 3 * (expected * (1 - expected) / n) ** 0.5
    assert torch.equal(draw(labels=0.0).labels[0], batch()[0][0, draw().slots])


def test_boxes_move_as_far_as_asked():
    torch.manual_seed(0)
    noisy = draw(number=3000)
    true = batch()[2][0, noisy.slots]
    half = (true[:, 2:] / 2).repeat(1, 2)
    moved = (box_corners(noisy.boxes[0]) - box_corners(true)).abs() / half
    near, far = moved[noisy.positive[0]], moved[~noisy.positive[0]]
    assert near.max() < 0.4 + 1e-4 and far.min() > 0.4 - 1e-4 and far.max() < 0.8 + 1e-4
    assert near.max() > 0.38 and far.max() > 0.78
    assert (noisy.boxes[..., 2:] > 0).all() and (box_corners(noisy.boxes) >= -1e-6).all()


def test_mask():
    mask = denoising_mask(8, 2, 3, torch.device("cpu"))
    assert mask[8:, :8].all() and not mask[8:, 8:].any() and not mask[:8, 8:].any()
    assert mask[:4, 4:8].all() and mask[4:8, :4].all() and not mask[:4, :4].any() and not mask[4:8, 4:8].any()


def run(model, x, noisy):
    memory, shapes = model.remember(x)
    return model.detect(model.start(memory, shapes), memory, shapes, noisy)


def test_reading_queries_see_nothing_of_denoising():
    model, x, first = decoder().train(), torch.randn(2, 8, 4, 8).double(), draw(boxes=0.2)
    count, groups = first.labels.shape[1], first.groups
    other = first._replace(labels=(first.labels + 3) % 11, boxes=(first.boxes * 0.7).clamp(0.01))
    a, b = run(model, x, first), run(model, x, other)
    for one, two in zip(a, b):
        assert torch.equal(one[:, :, count:], two[:, :, count:])
        assert not torch.equal(one[:, :, :count], two[:, :, :count])
    without = run(model, x, None)
    for one, two in zip(a, without):
        torch.testing.assert_close(one[:, :, count:], two, rtol=0, atol=1e-6)
    # one group changes: the others do not notice
    size = count // groups
    boxes = first.boxes.clone()
    boxes[:, :size] *= 0.8
    c = run(model, x, first._replace(boxes=boxes))
    assert torch.equal(a[0][:, :, size:], c[0][:, :, size:]) and not torch.equal(a[0][:, :, :size], c[0][:, :, :size])


def test_gradients_between_denoising_and_reading():
    model, x, noisy = decoder().train(), torch.randn(2, 8, 4, 8).double(), draw()
    noisy = noisy._replace(boxes=noisy.boxes.double().requires_grad_())
    count = noisy.labels.shape[1]
    logits, _ = run(model, x, noisy)
    inputs = (noisy.boxes, model.label_embedding.weight)
    for gradient in torch.autograd.grad(logits[:, :, count:].square().sum(), inputs, retain_graph=True):
        assert not gradient.any()
    to_reading = torch.autograd.grad(logits[:, :, :count].square().sum(), model.query_content.weight)[0]
    assert to_reading.any(), "denoising may look at what reads"


@pytest.mark.parametrize("has_box", [(True, True), (True, False), (False, False)])
def test_training_output_with_and_without_boxes(has_box):
    model = decoder().train()
    out = model(torch.randn(2, 8, 4, 8).double(), data=batch(has_box=has_box))
    assert ("denoising" in out) == any(has_box) and out["logits"].shape == (2, 2, 6, 11)
