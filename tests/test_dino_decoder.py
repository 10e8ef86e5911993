"""DINO's decoder: which gradient goes where, boxes that stand still, proposals by hand, and where boxes come from."""

import inspect
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from openrec.config import check_config, load_config
from openrec.data.synthetic import SyntheticWords
from openrec.errors import ConfigError, SampleError
from openrec.modeling.decoders import build_decoder
from openrec.modeling.decoders.detr_coords import gen_encoder_output_proposals, get_sine_pos_embed
from openrec.optimizer.param_groups import is_decayed, param_groups
from openrec.preprocess.char_det_label_encode import CharDetLabelEncode
from openrec.preprocess.char_erasing import CharErasing
from openrec.preprocess.resize import RecTVResize

SMALL = {
    "name": "DINODecoder", "in_channels": 8, "out_channels": 11, "hidden_dim": 16, "num_queries": 6, "num_levels": 2,
    "n_heads": 2, "enc_layers": 1, "dec_layers": 3, "ffn_dim": 24, "dn_number": 0, "max_len": 4,
}  # fmt: skip


def decoder(still=False, **options):
    torch.manual_seed(0)
    model = build_decoder({**SMALL, **options}).double()
    for head in [] if still else [*model.box_heads, *([model.proposal_box] if model.two_stage else [])]:
        torch.nn.init.normal_(head[-1].weight, std=0.1)
    return model


def detect(model):
    memory, shapes = model.remember(torch.randn(2, 8, 4, 8).double())
    start = model.start(memory, shapes)
    return start, *model.detect(start, memory, shapes, None)


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({}, [False, True, True]),
        ({"look_forward_twice": False}, [False, False, True]),
        ({"box_refine": False}, [False, False, True]),
        ({"share_heads": True}, [True]),
    ],
)
def test_look_forward_twice_reaches_one_head_back(options, reached):
    model = decoder(**options)
    _, _, boxes = detect(model)
    inputs = [head[-1].weight for head in model.box_heads]
    gradients = torch.autograd.grad(boxes[-1].sum(), inputs, allow_unused=True)
    assert [g is not None and bool(g.any()) for g in gradients] == reached
    start = detect(model)[0]
    assert not start.boxes.requires_grad and start.proposals.requires_grad


def test_shared_heads_get_the_gradient_of_two_layers():
    model, other = decoder(share_heads=True), decoder(share_heads=True, look_forward_twice=False)
    other.load_state_dict(model.state_dict())
    gradients = []
    for one in (model, other):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(detect(one)[2][-1].sum(), one.box_heads[0][-1].weight)[0])
    assert not torch.allclose(*gradients)


def test_boxes_stand_still_under_a_head_of_zeros():
    start, _, boxes = detect(decoder(still=True))
    for layer in boxes:
        torch.testing.assert_close(layer, start.boxes, rtol=0, atol=1e-6)


def test_what_a_layer_looks_around_is_what_the_one_before_predicted():
    model, told, used = decoder(), [], []
    model._listener = lambda _, key, tensor: told.append((key, tensor))
    for layer in model.decoder_layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: used.append(kwargs["reference_points"][:, :, 0]), with_kwargs=True
        )
    start, logits, boxes = detect(model)
    for before, reference in zip((start.boxes, *boxes), used):
        torch.testing.assert_close(reference, before)
        assert not reference.requires_grad
    shown = [tensor for key, tensor in told if key == "box"]  # the refinement, for pictures
    torch.testing.assert_close(torch.stack(shown), torch.stack((start.boxes, *boxes)))
    assert told[-1][0] == "score" and torch.equal(told[-1][1], logits[-1].sigmoid().amax(-1))


def test_proposals_by_hand():
    memory = torch.ones(1, 6, 2)
    kept, logits = gen_encoder_output_proposals(memory, None, [(2, 3)], anchor_wh=(0.1, 0.8))
    boxes = logits.sigmoid()[0]
    torch.testing.assert_close(boxes[:, 0], torch.tensor([1 / 6, 0.5, 5 / 6]).repeat(2))
    torch.testing.assert_close(boxes[:, 1], torch.tensor([0.25, 0.75]).repeat_interleave(3))
    torch.testing.assert_close(boxes[:, 2:], torch.tensor([0.1, 0.8]).expand(6, 2))
    assert kept.equal(memory)
    _, logits = gen_encoder_output_proposals(
        torch.ones(1, 7, 2), None, [(2, 3), (1, 1)], anchor_wh=(0.1, 0.8), largest=0.95
    )
    torch.testing.assert_close(logits.sigmoid()[0, 6], torch.tensor([0.5, 0.5, 0.2, 0.95]))
    kept, logits = gen_encoder_output_proposals(torch.ones(1, 64, 2), None, [(1, 64)])
    assert logits[0, 0].isinf().all() and not kept[0, 0].any() and logits[0, 1:63].isfinite().all()


def test_cells_near_the_border_are_never_chosen_and_ties_go_to_the_first():
    model = decoder(num_levels=1, enc_layers=0, num_queries=62)
    with torch.no_grad():
        model.proposal_class.weight.zero_()
        start = model.start(torch.randn(1, 64, 16).double(), [(1, 64)])
    torch.testing.assert_close(start.boxes[0, :, 0], ((torch.arange(1, 63) + 0.5) / 64).double(), rtol=0, atol=0.2)
    assert start.boxes.isfinite().all()
    again = model.start(torch.zeros(1, 64, 16).double(), [(1, 64)])
    assert (again.boxes[0, 1:, 0] > again.boxes[0, :-1, 0]).all()
    model.num_queries = 63
    with pytest.raises(ConfigError, match=r"62 usable cells.*num_queries is 63"):
        model.start(torch.randn(1, 64, 16).double(), [(1, 64)])


@pytest.mark.parametrize(
    "options", [{}, {"mixed_query": False}, {"two_stage": False}, {"num_levels": 1, "enc_layers": 0}]
)
def test_every_parameter_learns_and_evaluation_gives_probabilities(options):
    model = decoder(**options)
    out = model.train()(torch.randn(2, 8, 4, 8).double(), data=no_boxes())
    found = out.get("proposals", {})
    sum(t.square().sum() for t in (out["logits"], out["boxes"], *found.values())).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    p = model.eval()(torch.randn(2, 8, 4, 8).double())
    assert p.shape == (2, 6, 15) and (p >= 0).all() and (p <= 1).all()


def no_boxes():
    return torch.zeros(2, 4).long(), torch.tensor([2, 3]), torch.full((2, 4, 4), 0.5), torch.tensor([False, False])


def test_start_of_training():
    model = build_decoder({**SMALL, "hidden_dim": 64, "num_queries": 40})
    assert torch.allclose(model.class_heads[0].bias, torch.tensor(-4.595), atol=1e-3)
    assert not any(p.any() for head in model.box_heads for p in head[-1].parameters())
    bound = (6 / (40 + 64)) ** 0.5  # Xavier
    assert 0.95 * bound < model.query_content.weight.abs().max() <= bound
    assert 0.8 < model.level_embed.std() < 1.2 and model.level_embed.abs().max() > 2  # normal


def test_which_parameters_are_decayed():
    exempt = {"query_content.weight", "level_embed", "reference_points.weight"}
    for two_stage in (True, False):
        model = build_decoder({**SMALL, "two_stage": two_stage})
        for name, parameter in model.named_parameters():
            assert is_decayed(name, parameter, set()) == (parameter.ndim > 1 and name not in exempt), name


@pytest.mark.parametrize("temperature", [20, 10000])
def test_what_the_encoder_is_asked_with_and_where_it_looks(temperature):
    model, told = decoder(pe_temperature=temperature), {}
    model.encoder_layers[0].register_forward_pre_hook(lambda _, __, kwargs: told.update(kwargs), with_kwargs=True)
    _, shapes = model.remember(torch.randn(1, 8, 4, 8).double())
    frequency = [temperature ** (-2 * (i // 2) / 8) for i in range(8)]
    codes, places = [], []
    for level, (h, w) in enumerate(shapes):
        for y, x in itertools.product(range(h), range(w)):
            angles = [2 * math.pi * (i + 1) / n * f for i, n in ((y, h), (x, w)) for f in frequency]
            code = [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)]
            codes.append(torch.tensor(code).double() + model.level_embed[level])
            places.append([(x + 0.5) / w, (y + 0.5) / h])
    assert shapes == [(4, 8), (2, 4)]
    torch.testing.assert_close(told["query_pos"][0], torch.stack(codes), rtol=0, atol=1e-5)
    reference = torch.tensor(places).double()[None, :, None].expand(-1, -1, 2, -1)
    torch.testing.assert_close(told["reference_points"], reference, rtol=0, atol=1e-6)


def test_queries_are_asked_with_the_code_of_their_box():
    model, told = decoder(pe_temperature=50), []
    model.query_pos.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    start, _, boxes = detect(model)
    for code, box in zip(told, (start.boxes, *boxes)):
        torch.testing.assert_close(code, get_sine_pos_embed(box, 8, 50), rtol=0, atol=1e-6)
    x, y, w, h = boxes[0][0, 0].tolist()
    angles = [2 * math.pi * v / 50 ** (2 * i / 8) for v in (y, x, w, h) for i in range(4)]
    by_hand = [f(angle) for angle in angles for f in (math.sin, math.cos)]
    assert told[1][0, 0].tolist() == pytest.approx(by_hand, abs=1e-5)


def test_tall_proposals_stay_inside():
    model = decoder(num_levels=3, num_queries=42, still=True)
    sizes = detect(model)[0].boxes[0, :, 2:]
    for wanted in ((0.1, 0.8), (0.2, 0.95), (0.4, 0.95)):
        assert (sizes - torch.tensor(wanted).double()).abs().amax(-1).min() < 1e-6, wanted


def test_refusals():
    with pytest.raises(ConfigError, match="6 queries cannot find 25 characters"):
        build_decoder({**SMALL, "max_len": 25})
    with pytest.raises(ConfigError, match="keep_keys: \\[image, label, length, boxes, has_box\\]"):
        build_decoder(SMALL).train()(torch.randn(1, 8, 4, 8))


# ---- boxes: from the renderer to the tensors ------------------------------------------------------


def words(ops, **options):
    keep = {"KeepKeys": {"keep_keys": ["image", "label", "length", "boxes", "has_box"]}}
    settings = {"max_text_length": 8, "character_dict_path": None, "use_space_char": False}
    return SyntheticWords([*ops, keep], size=20, max_length=6, global_config=settings, **options)


def test_boxes_go_through_the_resize_with_its_padding():
    data = words([{"RecTVResize": {"image_shape": [32, 256]}}, "CharDetLabelEncode"])
    for index in range(8):
        image, label, length, boxes, has_box = data[index].values
        assert has_box and length == sum(label >= 0)
        word = data.render(index, data._random(1, index))
        width, height = word.size
        content = min(256, int(np.ceil(32 * width / height)))  # px that the picture takes up
        scale = np.array([content / width, 32 / height, content / width, 32 / height])
        want = word.boxes * scale
        low, high = boxes[:length, :2] - boxes[:length, 2:] / 2, boxes[:length, :2] + boxes[:length, 2:] / 2
        np.testing.assert_allclose(np.concatenate((low, high), 1) * [256, 32, 256, 32], want, atol=0.05)
        assert image.shape == (3, 32, 256) and not image[:, :, content:].any()


@pytest.mark.parametrize(("boxes", "known"), [("required", True), ("optional", True), ("none", False)])
def test_a_guide_of_ctc_gets_its_boxes_too(boxes, known):
    guide = {"name": "CharDetLabelEncode", "boxes": boxes}
    data = words([{"RecTVResize": {"image_shape": [32, 96]}}, {"GTCLabelEncode": {"gtc_label_encode": guide}}])
    _, _, length, found, has_box = data[0].values
    assert data.wants_boxes is known and bool(has_box) is known and (found[:length, 0] != 0.5).any() == known


def test_boxes_by_hand():
    sample = {"image": np.zeros((10, 20, 3), np.uint8), "label": "a-b", "training": True}
    sample["boxes"] = np.array([[0.25, 0.5, 0.2, 1.0], [0.5, 0.5, 0.1, 0.1], [0.75, 0.5, 0.4, 1.0]], np.float32)
    out = CharDetLabelEncode(5)(RecTVResize([10, 40])(sample))
    np.testing.assert_allclose(out["boxes"][:2], [[0.125, 0.5, 0.1, 1.0], [0.375, 0.5, 0.2, 1.0]], rtol=1e-6)
    assert out["label"].tolist() == [10, 11, -1, -1, -1] and out["length"] == 2 and out["has_box"]
    plain = {"label": "ab", "training": True, "valid_ratio": 0.5}
    parts = CharDetLabelEncode(3, boxes="uniform")(dict(plain))
    np.testing.assert_allclose(parts["boxes"][:2], [[0.125, 0.5, 0.25, 1], [0.375, 0.5, 0.25, 1]])
    assert not CharDetLabelEncode(3, boxes="optional")(dict(plain))["has_box"]
    with pytest.raises(SampleError, match="no boxes"):
        CharDetLabelEncode(3)(dict(plain))


def test_ops_that_would_leave_boxes_behind_are_refused():
    with pytest.raises(ConfigError, match="PARSeqAugPIL changes the image and leaves the characters' boxes"):
        words(["PARSeqAugPIL", {"RecTVResize": {"image_shape": [32, 96]}}, "CharDetLabelEncode"])
    words(["PARSeqAugPIL", {"RecTVResize": {"image_shape": [32, 96]}}, {"CharDetLabelEncode": {"boxes": "none"}}])


def test_configs_without_boxes_or_without_a_detector_are_refused():
    with pytest.raises(ConfigError, match=r"Loss\.mode: ctc tunes a detector"):
        check_config(load_config("configs/rec/dino/dino_ctc.yml"), "train")
    config = load_config("configs/rec/dino/dino_ctc.yml", ["Loss.mode=det"])
    with pytest.raises(ConfigError, match="needs boxes of the characters"):
        check_config(config, "train")
    config["Train"]["dataset"]["transforms"][2] = {"CharDetLabelEncode": {"boxes": "optional"}}
    with pytest.raises(ConfigError, match=r"which RatioDataSetTVResize does not have\. Use SyntheticWords"):
        check_config(config, "train")
    for options in (
        ["Loss.mode=det"],
        ["Train.dataset.transforms=[CharDetLabelEncode, {KeepKeys: {keep_keys: [image]}}]"],
    ):
        with pytest.raises(ConfigError, match=r"joint and \{CharDetLabelEncode: \{boxes: optional\}\}"):
            check_config(load_config("configs/rec/dino/dino_joint.yml", options), "train")
    for section, name in (("Loss", "CTCLoss"), ("PostProcess", "CTCLabelDecode")):
        config = load_config("configs/rec/dino/dino_tiny.yml")
        config[section] = {"name": name}
        with pytest.raises(ConfigError, match="does not go with DINODecoder"):
            check_config(config, "train")


@pytest.mark.parametrize(
    ("name", "lr", "encoder", "clip"),
    [("dino_det", 2e-4, 0.1, 0.1), ("dino_joint", 2e-4, 0.1, 0.1), ("dino_ctc", 2e-5, 0, 0.01)],
)
def test_rates_of_the_recipes(name, lr, encoder, clip):
    config = load_config(f"configs/rec/dino/{name}.yml")
    options, train = config["Optimizer"], config["Train"]
    assert (options["lr"], options["weight_decay"], config["Global"]["grad_clip_val"]) == (lr, 1e-4, clip)
    batch = train["sampler"]["first_bs"] if "sampler" in train else train["loader"]["batch_size_per_card"]
    assert batch == 256
    names = ("encoder.stages", "decoder.encoder_layers", "decoder.attentions.sampling_offsets", "decoder.heads")
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in names]
    model = SimpleNamespace(named_parameters=lambda: zip(names, parameters))
    groups = param_groups(model, lr=lr, lr_mult=options["lr_mult"])
    rates = {id(p): group.get("lr", lr) / lr for group in groups for p in group["params"]}
    assert [rates[id(p)] for p in parameters] == pytest.approx([encoder, 1, 0.1, 1])


def test_weights_of_another_dictionary_keep_the_shared_characters():
    theirs, ours = "abcdefghijk", "kxa"
    source, target = decoder(), decoder(out_channels=3)
    mapped = target.map_characters(source.state_dict(), list(theirs), list(ours))
    for name in ("class_heads.0.weight", "proposal_class.bias", "label_embedding.weight"):
        old, own, new = source.state_dict()[name], target.state_dict()[name], mapped[name]
        assert torch.equal(new[[0, 2]], old[[10, 0]]) and torch.equal(new[1], own[1]) and new.shape == own.shape
    target.load_state_dict(mapped)
    assert torch.equal(target.box_heads[0][0].weight, source.box_heads[0][0].weight)


@pytest.mark.parametrize("floating", [False, True])
def test_erasing_hides_strips_and_spots_and_leaves_boxes_where_they_are(floating):
    rng, op = np.random.default_rng(0), CharErasing(strips=5, spots=0, p=1.0)
    image = np.full((3, 32, 96), 9, np.float32) if floating else np.full((32, 96, 3), 255, np.uint8)
    erased = op({"image": image, "rng": rng, "training": True})["image"]
    changed = (erased != image).any(0) if floating else (erased != image).any(-1)
    assert erased.shape == image.shape and (image == image.flat[0]).all()
    assert (changed.all(0) == changed.any(0)).all() and 0.03 <= changed.mean() <= 5 * 0.08
    spots = CharErasing(strips=0, spots=4, p=1.0)({"image": image, "rng": rng, "training": True})["image"]
    share = (spots != image).mean()
    assert 0.005 < share < 0.1
    assert CharErasing(p=1.0)({"image": image, "rng": rng, "training": False})["image"] is image
    words([{"RecTVResize": {"image_shape": [32, 96]}}, "CharErasing", "CharDetLabelEncode"])[0]
    with pytest.raises(ConfigError, match=r"CharErasing\.strip_aspect: expected \[least, most\]"):
        CharErasing(strip_aspect=(3.0, 1.0))


def test_erasing_as_in_dtlr():
    defaults = {k: p.default for k, p in inspect.signature(CharErasing).parameters.items()}
    assert defaults == {
        "strips": 5, "spots": 4, "p": 0.5, "strip_area": (0.02, 0.05), "spot_area": (0.01, 0.02),
        "strip_aspect": (3.0, 6.0), "spot_aspect": (0.3, 3.3),
    }  # fmt: skip
    image, rng = np.full((3, 200, 800), 9, np.float32), np.random.default_rng(0)
    sizes = {"strips": [], "spots": []}
    for kind, _ in itertools.product(sizes, range(200)):
        one = CharErasing(**{"strips": 0, "spots": 0, kind: 1}, p=1.0)
        erased = (one({"image": image, "rng": rng, "training": True})["image"] != image).any(0)
        sizes[kind].append((int(erased.any(1).sum()), int(erased.any(0).sum())))
    strips, spots = np.array(sizes["strips"]), np.array(sizes["spots"])
    low, high = (0.02 * 160000 / 6) ** 0.5, (0.05 * 160000 / 3) ** 0.5  # px: area and aspect give the width
    assert (strips[:, 0] == 200).all() and low - 1 <= strips[:, 1].min() <= 1.3 * low
    assert 0.8 * high <= strips[:, 1].max() <= high + 1
    area, aspect = spots.prod(1) / 160000, spots[:, 0] / spots[:, 1]
    assert 0.0095 < area.min() < 0.011 and 0.019 < area.max() < 0.0205
    assert 0.28 < aspect.min() < 0.5 and 2.8 < aspect.max() < 3.5
