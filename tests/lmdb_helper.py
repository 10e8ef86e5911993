"""Small LMDBs and configs for the data tests."""

from __future__ import annotations

import cv2
import lmdb
import numpy as np

CTC = {"CTCLabelEncode": {"max_text_length": 25}}


def picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 2)


def encoded(width, height, seed=0, ending=".jpg"):
    return cv2.imencode(ending, picture(width, height, seed))[1].tobytes()


def write_lmdb(path, records, with_wh=True, count=None):
    """``records``: ``(image bytes or None, label str, bytes or None, (w, h) or None)``."""
    path.mkdir(parents=True, exist_ok=True)
    env = lmdb.open(str(path), map_size=1 << 26)
    with env.begin(write=True) as txn:
        for number, (image, label, size) in enumerate(records, 1):
            if image is not None:
                txn.put(b"image-%09d" % number, image)
            if label is not None:
                txn.put(b"label-%09d" % number, label if isinstance(label, bytes) else label.encode())
            if with_wh and size is not None:
                txn.put(b"wh-%09d" % number, b"%d_%d" % size)
        txn.put(b"num-samples", b"%d" % (len(records) if count is None else count))
    env.close()
    return str(path)


def words(n, seed=0, ratios=(0.6, 1.2, 2.0, 3.1, 4.0, 5.2, 7.4)):
    """``n`` good records of several ratios, labels word1, word2, ..."""
    records = []
    for i in range(n):
        height = 24 + i % 9
        width = max(4, round(height * ratios[(i + seed) % len(ratios)]))
        records.append((encoded(width, height, seed + i), f"word{i + 1}", (width, height)))
    return records


def transforms(*extra, keep=("image", "label", "length"), label=CTC):
    ops = [{"DecodeImagePIL": {"img_mode": "RGB"}}, *extra]
    return [*ops, *([label] if label else []), {"KeepKeys": {"keep_keys": list(keep)}}]


def ratio_config(paths, *, train_ops=(), first_bs=8, workers=0, max_ratio=12, **dataset):
    """A config as OpenOCR's SVTRv2 files have it, for both modes."""

    def section(training):
        ops = transforms(*(train_ops if training else ()))
        name = dataset.get("name", "RatioDataSetTVResize")
        rest = {k: v for k, v in dataset.items() if k != "name"}
        return {
            "dataset": {
                "name": name, "ds_width": True, "padding": False, "data_dir_list": list(paths), "transforms": ops,
                **rest,
            },
            "sampler": {
                "name": "RatioSampler", "scales": [[128, 32]], "first_bs": first_bs, "fix_bs": False,
                "divided_factor": [4, 16], "is_training": training,
            },
            "loader": {
                "shuffle": training, "batch_size_per_card": first_bs, "drop_last": training, "max_ratio": max_ratio,
                "num_workers": workers,
            },
        }  # fmt: skip

    return {"Global": {"max_text_length": 25}, "Train": section(True), "Eval": section(False)}
