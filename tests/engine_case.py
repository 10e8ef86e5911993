"""A training run small enough for tests: short words on 32x64 images, a model of some thousand weights."""

import copy
import json
from pathlib import Path

import cv2
import lmdb
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """
Global: {device: cpu, epoch_num: 2, log_smooth_window: 5, print_batch_step: 1, save_epoch_step: [0, 1],
  eval_epoch_step: [0, 1], eval_batch_step: [0, 1000], max_text_length: 8, save_latest_step: 2, progress_bar: False}
Optimizer: {name: AdamW, lr: 0.003, weight_decay: 0.05, filter_bias_and_bn: True}
LRScheduler: {name: OneCycleLR, warmup_epoch: 0.5, cycle_momentum: False}
Architecture:
  model_type: rec
  algorithm: SVTRv2
  Encoder: {name: SVTRv2LNConvTwo33, use_pos_embed: False, dims: [8, 8, 32], depths: [1, 1, 1], num_heads: [1, 1, 1],
    mixer: [[Conv], [Conv], [Conv]], local_k: [[5, 5], [5, 5], [5, 5]], sub_k: [[1, 1], [2, 1], [-1, -1]],
    last_stage: false, feat2d: True}
  Decoder: {name: RCTCDecoder}
Loss: {name: CTCLoss, zero_infinity: True}
PostProcess: {name: CTCLabelDecode}
Metric: {name: RecMetric, main_indicator: acc, is_filter: False}
Train:
  dataset:
    name: LMDBDataSet
    data_dir: TRAIN
    transforms: &transforms
      - DecodeImage: {img_mode: BGR}
      - CTCLabelEncode:
      - SVTRResize: {image_shape: [3, 32, 64]}
      - KeepKeys: {keep_keys: [image, label, length]}
  loader: {shuffle: True, batch_size_per_card: 4, drop_last: False, num_workers: 0}
Eval:
  dataset: {name: LMDBDataSet, data_dir: EVAL, transforms: *transforms}
  loader: {shuffle: False, batch_size_per_card: 5, drop_last: False, num_workers: 0}
"""


def write_words(folder, count, seed=0, bad=()):
    """An LMDB of ``count`` words; the records numbered in ``bad`` (from 1) hold no picture."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for i in range(1, count + 1):
            text = "".join(rng.choice(list("0123456789"), rng.integers(1, 5)))
            image = np.full((32, 64, 3), 200, np.uint8)
            cv2.putText(image, text, (2, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 20, 20), 2)
            data = b"no picture" if i in bad else cv2.imencode(".png", image)[1].tobytes()
            txn.put(b"image-%09d" % i, data)
            txn.put(b"label-%09d" % i, text.encode())
        txn.put(b"num-samples", str(count).encode())
    return folder


def config_text(folder, train=22, evaluation=9, bad=()):
    """The YAML of a run in ``folder``; its data are written on the first call."""
    for name, count, seed in (("train", train, 0), ("eval", evaluation, 1)):
        if not (folder / name).exists():
            write_words(folder / name, count, seed, bad if name == "train" else ())
    return CONFIG.replace("TRAIN", str(folder / "train")).replace("EVAL", str(folder / "eval"))


def config_file(folder, changes=(), **data):
    """The same as a file, with ``changes`` like ``{"Global.epoch_num": 1}``."""
    content = yaml.safe_load(config_text(folder, **data))
    content["Global"].setdefault("output_dir", str(folder / "out"))
    for key, value in dict(changes).items():
        *path, last = key.split(".")
        place = content
        for part in path:
            place = place.setdefault(part, {})
        place[last] = copy.deepcopy(value)
    path = folder / "run.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def config(folder, changes=(), **data):
    """The loaded config."""
    from openrec.config import load_config

    return load_config(config_file(folder, changes, **data))


def rows(folder, event):
    """The lines of one kind in ``log.jsonl``."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]
