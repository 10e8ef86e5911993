"""Parts and numbers that cannot work together are refused before data are read, by the key that mends it."""

from pathlib import Path

import pytest

from openrec import registry
from openrec.config import check_config, load_config
from openrec.config_fit import FAMILIES
from openrec.config_kinds import argument_problems
from openrec.errors import ConfigError
from openrec.modeling import build_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "rec"
CTC, SOFT, HARD, DRAW = "svtrv2/svtrv2_mamba_tiny", "attn/soft_attn_tiny", "attn/hard_attn_tiny", "attn/draw_attn_tiny"
STN, ASTER, TPS = "attn/stn_soft_attn_tiny", "aster/aster_tiny", "aster/aster_tps_tiny"
DINO, SATRN, TRUE2D, DAT = "dino/dino_tiny", "satrn/satrn_tiny", "true2d/true2d_tiny", "dat/dat_tiny"
DECODER, ENCODER, TRANSFORM = "Architecture.Decoder.", "Architecture.Encoder.", "Architecture.Transform."


def load(name, *words):
    return load_config(CONFIGS / f"{name}.yml", words)


def problems_of(config, mode="train"):
    with pytest.raises(ConfigError) as error:
        check_config(config, mode)
    return str(error.value)


FOREIGN = [
    (CTC, "PostProcess.name=CELabelDecode", "CELabelDecode does not go with RCTCDecoder; use CTCLabelDecode."),
    (CTC, "Train.dataset.transforms.1=CharDetLabelEncode", "CharDetLabelEncode does not go with RCTCDecoder"),
    (CTC, "Eval.dataset.transforms.1=CELabelEncode", "Eval.dataset.transforms.1: CELabelEncode does not go with"),
    (SOFT, "PostProcess.name=CELabelDecode", "CELabelDecode does not go with SoftAttnDecoder"),
    (SOFT, "Train.dataset.transforms.1=EPLabelEncode", "EPLabelEncode does not go with SoftAttnDecoder; use ARLabel"),
    (SOFT, "Train.dataset.transforms.1=CharDetLabelEncode", "CharDetLabelEncode does not go with SoftAttnDecoder"),
    (SOFT, "PostProcess.name=DINOLabelDecode", "DINOLabelDecode does not go with SoftAttnDecoder"),
    (HARD, "Loss={name: CELoss}", "CELoss does not go with HardAttnDecoder; use HardAttnLoss."),
    (DINO, "Eval.dataset.transforms.1=ARLabelEncode", "ARLabelEncode does not go with DINODecoder; use CharDet"),
    # with their arguments left behind: the name is told beside them
    (DINO, "Loss.name=CTCLoss", "CTCLoss does not go with DINODecoder; use DINOLoss."),
    (DINO, "PostProcess.name=CTCLabelDecode", "CTCLabelDecode does not go with DINODecoder; use DINOLabelDecode."),
    (CTC, "Loss.name=DINOLoss", "DINOLoss does not go with RCTCDecoder; use CTCLoss."),
    (CTC, "Loss.name=CELoss", "CELoss does not go with RCTCDecoder; use CTCLoss."),
]  # fmt: skip

MISFITS = [
    *[(name, "max_len=3", "Decoder reads at most 3 characters, but it would learn from texts of up to 8")
      for name in (SOFT, HARD, DRAW, TRUE2D, ASTER, SATRN, DINO)],
    *[(name, "map_size=[2, 6]", "positions for 2x6. Set Decoder.map_size: [4, 24]")
      for name in (SOFT, HARD, DRAW, STN)],
    (DRAW, "map_size=[2, 24]", "Eval: images of 32x96 (height x width) leave a map of 4x24 cells"),
    (STN, "map_size=[2, 6]", "Architecture.Transform: images of 32x96"),
    (DINO, "num_queries=500", "leave 96 usable cells in maps of [(4, 24)], but num_queries is 500."),
    (ASTER, "seed=True", "leave sequences of 96, but seed needs 32 tokens. Set Decoder.time_step: 96."),
]  # fmt: skip

DATA = [
    (DINO, "Train.dataset.transforms.KeepKeys.keep_keys=[image, label, length, has_box, boxes]",
     "must begin with [image, label, length, boxes, has_box], got"),
    (DINO, "Train.dataset.transforms.KeepKeys.keep_keys=[image, label, length]", "label, length, boxes, has_box], got"),
    (DINO, "Eval.dataset.transforms.KeepKeys.keep_keys=[image, length, label]", "Eval.dataset.transforms: KeepKeys"),
    (CTC, "Train.dataset.by_ratio=True", "transforms.0: RecTVResize gives all images one size, but by_ratio: True"),
]  # fmt: skip

NUMBERS = [
    (SOFT, DECODER + "max_len=0", "Decoder.max_len: expected a whole number of at least 1, got 0."),
    (ASTER, DECODER + "max_len=-1", "max_len: expected a whole number of at least 1, got -1."),
    (SOFT, DECODER + "doubly_stochastic=-1", "doubly_stochastic: expected a number of at least 0, got -1."),
    (SOFT, DECODER + "map_size=[8]", "Decoder.map_size: expected two numbers [height, width], got [8]."),
    (DRAW, DECODER + "map_size=[8, 24, 3]", "map_size: expected two numbers [height, width], got [8, 24, 3]."),
    (SOFT, DECODER + "map_size=[8, -24]", "map_size: expected whole numbers of at least 1, got [8, -24]."),
    (TRUE2D, DECODER + "map_size=[0, 0]", "map_size: expected whole numbers of at least 1, got [0, 0]."),
    (TRUE2D, ENCODER + "max_sz=[32]", "max_sz: expected two numbers [height, width], got [32]."),
    (DAT, ENCODER + "max_sz=[32]", "max_sz: expected two numbers [height, width], got [32]."),
    (CTC, ENCODER + "sub_k=[[0,1],[2,1],[1,1]]", "sub_k: expected whole numbers of at least 1, got [[0, 1]"),
    (CTC, ENCODER + "sub_k=[[1,1],[0,1]]", "sub_k: expected whole numbers of at least 1, got [[1, 1], [0, 1]]"),
    (CTC, ENCODER + "sub_k=[[1],[2,1],[1,1]]", "sub_k: expected pairs [vertical, horizontal], got [[1]"),
    (DINO, DECODER + "anchor_wh=[]", "anchor_wh: expected two numbers [width, height], got []."),
    (DINO, DECODER + "anchor_wh=[0.1]", "anchor_wh: expected two numbers [width, height], got [0.1]."),
    (DINO, DECODER + "anchor_wh=[2, 5]", "anchor_wh: expected numbers above 0 and at most 1, parts of the image"),
    (DINO, DECODER + "n_points=0", "n_points: expected a whole number of at least 1, got 0."),
    (DINO, DECODER + "dn_number=-3", "dn_number: expected a whole number of at least 0, got -3."),
    (DINO, DECODER + "pe_temperature=0", "pe_temperature: expected a number above 0, got 0."),
    (TRUE2D, DECODER + "n_head=0", "Decoder.n_head: expected a whole number of at least 1, got 0."),
    (TRUE2D, DECODER + "n_layers=0", "n_layers: expected a whole number of at least 1, got 0."),
    (TRUE2D, DECODER + "d_model=0", "Decoder.d_model: expected a whole number of at least 1, got 0."),
    (TRUE2D, ENCODER + "n_head=0", "Encoder.n_head: expected a whole number of at least 1, got 0."),
    (TRUE2D, ENCODER + "d_inner=-5", "d_inner: expected a whole number of at least 1, got -5."),
    (SATRN, ENCODER + "n_head=0", "Encoder.n_head: expected a whole number of at least 1, got 0."),
    (SATRN, ENCODER + "num_heads=0", "Encoder.num_heads: expected a whole number of at least 1, got 0."),
    (SATRN, ENCODER + "n_layers=-1", "n_layers: expected a whole number of at least 1, got -1."),
    (SATRN, DECODER + "nhead=0", "nhead: expected a whole number of at least 1, got 0."),
    (CTC, ENCODER + "dt_rank=0", "dt_rank: expected a whole number of at least 1, got 0."),
    (CTC, ENCODER + "dt_rank=aut", "dt_rank: expected a whole number or auto, got 'aut'."),
    (CTC, ENCODER + "ssm_expand=0", "ssm_expand: expected a number above 0, got 0."),
    (CTC, ENCODER + "mlp_ratio=0", "mlp_ratio: expected a number above 0, got 0."),
    (CTC, ENCODER + "d_state=0", "d_state: expected a whole number of at least 1, got 0."),
    (CTC, ENCODER + "dims=[32, 32, 0]", "dims: expected whole numbers of at least 1, got [32, 32, 0]."),
    (CTC, ENCODER + "op_backend=cud", "op_backend: expected one of auto, native, torch, reference, parallel, got"),
    (STN, TRANSFORM + "channels=[0,1,2,3,4,5]", "channels: expected whole numbers of at least 1, got [0, 1"),
    (TPS, TRANSFORM + "tps_margins=[0.6, 0.6]", "tps_margins: expected numbers at least 0 and below 0.5"),
    (HARD, DECODER + "warm_start_epochs=-1", "warm_start_epochs: expected a whole number of at least 0, got -1."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [*FOREIGN, *[(name, DECODER + word, message) for name, word, message in MISFITS], *DATA, *NUMBERS],
)
def test_what_cannot_work_is_named_before_any_data_is_read(name, word, message):
    assert message in problems_of(load(name, word))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (SOFT, ["Loss={name: CELoss}"]),
        (SOFT, [DECODER + "map_size=[2, 6]", DECODER + "pos2d=False"]),
        (STN, ["Train.dataset.transforms.RecTVResize.image_shape=[64, 256]"]),  # the transform's size counts
        (ASTER, [DECODER + "seed=True", DECODER + "time_step=96"]),
        (DINO, [DECODER + "num_queries=500", DECODER + "two_stage=False"]),  # no cells to start from
        (SATRN, [DECODER + "max_len=8", DECODER + "num_encoder_layers=0"]),  # eight characters need no end
        (DAT, [ENCODER + "offset_range=-2"]),  # negative: unbounded
        (SOFT, [DECODER + "max_len=6", "Train.dataset.transforms.ARLabelEncode.max_text_length=6"]),  # lets no more in
        (CTC, [ENCODER + "sub_k=[[1,1],[2,1],[-1,-1]]"]),  # the last one is of no transition
    ],
)
def test_unusual_parts_that_do_work_pass(name, words):
    check_config(load(name, *words))


@pytest.mark.parametrize("strides", ["[[1,1]]", "[[1,1],[-1,-1]]"])
def test_every_transition_has_a_stride(strides):
    config = load(CTC, ENCODER + f"sub_k={strides}")
    with pytest.raises(ConfigError, match=r"sub_k: expected a stride of at least 1 for each of 2 transitions"):
        build_model({**config["Architecture"], "Decoder": {"name": "RCTCDecoder", "out_channels": 9}})


def test_a_penalty_needs_a_loss_that_takes_it():
    words = [DECODER + "doubly_stochastic=1", "Loss={name: CELoss}"]
    assert "CELoss does not take the penalty" in problems_of(load(SOFT, *words))


def test_evaluation_reads_with_a_shorter_limit_than_it_was_trained_for():
    check_config(load(SOFT, DECODER + "max_len=3"), "eval")


@pytest.mark.parametrize("section", ["decoder", "loss", "postprocess", "op"])
def test_every_part_that_writes_texts_has_a_family(section):
    listed = {name for family in FAMILIES.values() for name in family[section]}
    ends = "LabelEncode" if section == "op" else ""
    assert listed == {name for name in registry.names(section) if name.endswith(ends)}


def test_hard_attention_that_never_draws_is_told(caplog, monkeypatch):
    monkeypatch.setattr(registry, "_warned", set())
    check_config(load(HARD, DECODER + "warm_start_epochs=30", "Global.epoch_num=30"))
    assert "no place is ever drawn" in caplog.text
    caplog.clear()
    check_config(load(HARD, DECODER + "warm_start_epochs=29", "Global.epoch_num=30"))
    assert "no place is ever drawn" not in caplog.text


def test_a_number_may_be_what_it_is_by_default():
    """An own encoder may count from 0, or mean something by -1, without a line in a table."""

    class Own:
        def __init__(self, dim: int, first: int = 0, last: int = -1, width: int = 8):
            pass

    assert argument_problems(Own, {"first": 0, "last": -1, "width": 1}, "Encoder") == []
    wrong = argument_problems(Own, {"first": -1, "last": -2, "width": 0, "dim": 0}, "Encoder")
    assert [text.split(":")[0] for text in wrong] == [f"Encoder.{k}" for k in ("first", "last", "width", "dim")]


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        (TRUE2D, ENCODER + "out_rank=3", "gives a sequence. Set Encoder.out_rank: 4."),
        (SOFT, ENCODER + "last_stage=True", "sequence. Set Encoder.feat2d: True. Set Encoder.last_stage: False."),
        ("true2d/satrn_enc_true2d_dec_tiny", ENCODER + "feat2d=False", "gives a sequence. Set Encoder.feat2d: True."),
        (TPS, TRANSFORM + "num_control_points=7", "Transform.num_control_points: expected an even number"),
        (TPS, TRANSFORM + "tps_outputsize=[32, 96, 3]", "Transform.tps_outputsize: expected [height, width]"),
        (TPS, TRANSFORM + "tps_inputsize=[10, 20]", "Transform.tps_inputsize: the copy the warp is read from"),
        (STN, TRANSFORM + "loc_size=[10, 20]", "Transform.loc_size: the copy the warp is read from"),
        (TRUE2D, ENCODER + "n_head=5", "Encoder.n_head: 48 channels (Encoder.d_model) cannot be split into 5 heads"),
        (SATRN, DECODER + "nhead=5", "Decoder.nhead: the encoder's 48 channels cannot be split into 5 heads"),
        (CTC, ENCODER + "mixer_cfg={Mamba: {dt_rank: 0}}", "mixer_cfg.Mamba.dt_rank: expected a whole number of at"),
        (CTC, ENCODER + "mixer_cfg={Mamba: {dt_rank: aut}}", "Mamba.dt_rank: expected a whole number or auto, got"),
        (CTC, ENCODER + "mixer_cfg={BiMamba1D: {op_backend: cud}}", "BiMamba1D.op_backend: expected one of auto, na"),
        (CTC, ENCODER + "mixer_cfg={True2D: {mlp_ratio: 0}}", "mixer_cfg.True2D.mlp_ratio: expected a number above 0"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_built_name_the_key_of_the_config(name, word, message):
    architecture = load(name, word)["Architecture"]
    with pytest.raises(ConfigError) as error:
        build_model({**architecture, "Decoder": {**architecture["Decoder"], "out_channels": 39}})
    assert message in str(error.value)
