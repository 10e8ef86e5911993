"""Small recognisers and pictures for the tests of reading."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import yaml

from openrec.charset import Charset
from openrec.checkpoint import save_checkpoint
from openrec.modeling import build_model
from openrec.postprocess import build_post_process

ROOT = Path(__file__).resolve().parents[1]

BUCKETS = """
Global: {device: cpu, epoch_num: 1, max_text_length: 8}
Architecture:
  model_type: rec
  algorithm: SVTRv2
  Encoder: {name: SVTRv2LNConvTwo33, use_pos_embed: False, dims: [8, 8, 32], depths: [1, 1, 1], num_heads: [1, 1, 1],
    mixer: [[Conv], [Conv], [Conv]], sub_k: [[1, 1], [2, 1], [-1, -1]], last_stage: false, feat2d: True}
  Decoder: {name: RCTCDecoder}
PostProcess: {name: CTCLabelDecode}
Metric: {name: RecMetric}
Eval:
  dataset:
    name: RatioDataSetTVResize
    data_dir_list: [EVAL]
    padding: False
    transforms:
      - DecodeImagePIL: {img_mode: RGB}
      - CTCLabelEncode:
      - KeepKeys: {keep_keys: [image, label, length]}
  sampler: {name: RatioSampler, scales: [[128, 32]], first_bs: 4, is_training: False}
  loader: {max_ratio: 4, num_workers: 0}
"""


class Done(NamedTuple):
    """How a command-line tool ended."""

    returncode: int
    stdout: str
    stderr: str


def run_tool(name, *words):
    """``tools/<name>`` with these arguments, in this process: no second start of torch."""
    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, list(sys.path))
    sys.argv = [str(ROOT / "tools" / name), *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv, sys.path[:] = before
    return Done(status, out.getvalue(), err.getvalue())


def config(**changes):
    """The YAML above; ``changes``: dotted keys with ``__`` for the dot."""
    content = yaml.safe_load(BUCKETS)
    for key, value in changes.items():
        *path, last = key.split("__")
        place = content
        for part in path:
            place = place[part]
        place[last] = value
    return content


def checkpoint(path, content=None, charset=None, seed=0):
    """A checkpoint of a model with random weights that are large enough for texts to differ."""
    content, charset = content or config(), charset or Charset.load()
    torch.manual_seed(seed)
    post_process = build_post_process(content["PostProcess"], content["Global"], charset)
    content["Architecture"]["Decoder"]["out_channels"] = post_process.get_character_num()
    model = build_model(content["Architecture"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("decoder.") and "fc" in name.split(".")[-2]:
                parameter.mul_(8)
    state = {"config": content, "charset": charset.state(), "state_dict": model.state_dict(), "metrics": {}, "epoch": 1}
    save_checkpoint(state, path)
    return path


def picture(number, width=96, height=32):
    """An RGB picture that is another one for each number."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 255, (max(1, height // 4), max(1, width // 4), 3), np.uint8)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def write_pictures(folder, count, broken=(), sizes=((96, 32), (40, 40), (64, 30), (200, 30))):
    """PNG files ``000.png`` ...; those numbered in ``broken`` hold no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        data = cv2.imencode(".png", picture(i, *sizes[i % len(sizes)]))[1].tobytes()
        (folder / f"{i:03d}.png").write_bytes(data[:60] if i in broken else data)
    return folder
