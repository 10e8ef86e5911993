"""Every shipped YAML passes the check, builds, and takes a training step; full sizes match known digests."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import shrink

from openrec.config import check_config, load_config, resolve_charset
from openrec.losses import build_loss
from openrec.modeling import build_model
from openrec.optimizer import build_optimizer
from openrec.postprocess import build_post_process
from openrec.preprocess import create_operators

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs" / "rec").rglob("*.yml"))
IDS = [Path(p).stem for p in CONFIGS]

# Whole models: digest of names and shapes, and number of parameters, as published for OpenOCR's own configs.
DIGESTS = {
    "svtrv2_tiny_rctc": ("44fb27a1dc59812185baea085c87f7b2cf9c31830c0fe1d1bb2c6f20adb5ed57", 5128255),
    "svtrv2_small_rctc": ("5f9ec053cfdd4ad2fef2d4c2dba9beabdd53fee50756edab1d4012e761cb02ea", 11251247),
    "svtrv2_rctc": ("bc20dcc50699db2c8cd323c14ec52c6025d5adfd2414192c946ba16d1842c6e3", 19755551),
    "svtrv2_ctc": ("87080015ad0d397c1a7cf62974b0559241eec8a3c7b8d057559c6a4b84d8a952", 17772319),
    "svtrv2_smtr_gtc_rctc": ("b9b160098ccb26e489a1c878a951ddd8256ba1da270aedd5104a028d7b5c2ca5", 21022463),
    "svtrv2_smtr_gtc_rctc_infer": ("c232f87b0935db8a402ec93606ef55417678701b94a145fab5dc692f6d6fb926", 19755551),
    "svtrv2_smtr_gtc_rctc_ch": ("8d1b3545428fa3c258956461b8e14882e0b4f584670739d0707167af165a0fdd", 28556929),
    "svtrv2_ch": ("480b0e5335b50afa58d26af9f44fe4aa91808a9f72108e8bfe282a713dc59588", 20983329),
}
# Encoders of this project: parameters without the final norm (2 per channel).
ENCODERS = {
    "svtrv2_attn_rctc": 6755360,
    "svtrv2_mamba_rctc": 6106400,
    "svtrv2_mamba_gtc_rctc": 6106400,
    "svtrv2_mamba_conservative_rctc": 6197376,
    "svtrv2_mamba_aggressive_rctc": 6052416,
    "svtrv2_mamba_base_rctc": 15892576,
}


@pytest.fixture(scope="session")
def chinese(tmp_path_factory):
    """A stand-in for PaddleOCR's dictionary, which is not part of this project: as many characters."""
    path = tmp_path_factory.mktemp("dict") / "ppocr_keys_v1.txt"
    path.write_text("\n".join(chr(0x4E00 + i) for i in range(6623)) + "\n", encoding="utf-8")
    return str(path)


def load(path, chinese):
    words = [f"Global.character_dict_path={chinese}"] if path.endswith("_ch.yml") else []
    words += (
        [f"Global.pretrained_model={chinese}"] if path.endswith(("dino_ctc.yml", "_stage2.yml")) else []
    )  # any file that exists
    return load_config(ROOT / path, words)


def parts(config):
    charset = resolve_charset(config)
    post = build_post_process(config["PostProcess"], config["Global"], charset=charset)
    architecture = copy.deepcopy(config["Architecture"])
    architecture["Decoder"]["out_channels"] = post.get_character_num()
    return charset, build_model(architecture)


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_config_is_short_and_passes_the_check(path, chinese):
    mode = "eval" if path.endswith("_infer.yml") else "train"
    check_config(load(path, chinese), mode)
    lines = [line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= (40 if any("_BASE_" in line for line in lines) else 60) and lines[0].startswith("#")


@pytest.mark.parametrize("name", DIGESTS)
def test_full_size_models_have_the_known_names_and_shapes(name, chinese):
    _, model = parts(load(f"configs/rec/svtrv2/{name}.yml", chinese))
    shapes = [f"{k} {'x'.join(map(str, v.shape)) or 'scalar'}" for k, v in model.state_dict().items()]
    digest, count = DIGESTS[name]
    assert sum(p.numel() for p in model.parameters()) == count
    assert hashlib.sha256("\n".join(shapes).encode()).hexdigest() == digest


@pytest.mark.parametrize("name", ENCODERS)
def test_full_size_encoders_have_the_known_number_of_parameters(name):
    config = load_config(ROOT / f"configs/rec/svtrv2/{name}.yml")
    assert config["Architecture"]["Encoder"]["final_norm"] is ("mamba" in name)
    _, model = parts(config)
    norm = 2 * config["Architecture"]["Encoder"]["dims"][-1] if "mamba" in name else 0
    assert sum(p.numel() for p in model.encoder.parameters()) == ENCODERS[name] + norm


def random_batch(config, mode, charset, size):
    """Random images with encoded labels, in the order of ``keep_keys``."""
    transforms = [op for op in config[mode]["dataset"]["transforms"] if "Label" in next(iter(op))]
    keep = config[mode]["dataset"]["transforms"][-1]["KeepKeys"]["keep_keys"]
    options = {k: config["Global"][k] for k in ("max_text_length", "use_space_char", "character_dict_path")}
    ops = create_operators(transforms, **options, charset=charset)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(4):
        sample = {"label": "".join(rng.choice(charset.characters, 3 + i)), "rng": rng, "training": mode == "Train"}
        places = (np.arange(3 + i, dtype=np.float32) + 0.5) / (3 + i)
        sample["boxes"] = np.stack((places, np.full_like(places, 0.5), places[:1].repeat(3 + i), places), 1)
        for op in ops:
            sample = op(sample)
        sample["image"] = rng.standard_normal((3, *size), np.float32)
        rows.append([np.asarray(sample[key]) for key in keep])
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows)]


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_config_takes_a_training_step(path, chinese):
    config = load(path, chinese)
    shrink(config["Architecture"])
    charset, model = parts(config)
    size = (48, 96) if path.endswith("svtrv2_ch.yml") else (32, 96)
    if config["Train"] is None:
        batch = random_batch(config, "Eval", charset, size)
        post = build_post_process(config["PostProcess"], config["Global"], charset=charset)
        with torch.no_grad():
            predictions, labels = post(model.eval()(batch[0], data=batch[1:]), batch)
        assert len(predictions) == len(labels) == 4
        return
    batch = random_batch(config, "Train", charset, size)
    length = {"epochs": config["Global"]["epoch_num"], "step_each_epoch": 10}
    optimizer, scheduler = build_optimizer(config["Optimizer"], config["LRScheduler"], **length, model=model)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    loss = build_loss(config["Loss"])(model.train()(batch[0], data=batch[1:]), batch)["loss"]
    loss.backward()
    optimizer.step()
    scheduler.step()
    assert torch.isfinite(loss) and all(torch.isfinite(p).all() for p in model.parameters())
    idle = {k for k, p in model.named_parameters() if p.grad is None}
    assert not idle, f"no gradient reaches {sorted(idle)[:5]}"
    warm_start = config["LRScheduler"]["name"] in ("CosineAnnealingLR", "ConstLR")  # their first learning rate is 0
    assert warm_start or any(not torch.equal(before[k], p) for k, p in model.named_parameters())
