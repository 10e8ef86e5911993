"""An image larger than a position table is refused before data are read, with the key that mends it."""

from pathlib import Path

import pytest

from openrec.config import check_config, load_config
from openrec.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "rec"
BUCKETS = "[[64, 64], [96, 48], [112, 40], [128, 32]]"


def check(path, *overrides):
    check_config(load_config(CONFIGS / path, overrides), "train")


@pytest.mark.parametrize(
    "path, overrides, repair",
    [
        ("true2d/true2d.yml", [f"Train.dataset.base_shape={BUCKETS}"], r"Train: .*64x128.*max_sz: \[64, 128\]"),
        ("true2d/true2d.yml", ["Eval.loader.max_ratio=8"], r"Eval: .*32x256.*max_sz: \[32, 256\]"),
        ("true2d/true2d_tiny.yml", ["Architecture.Encoder.max_sz=[32,64]"], r"32x96.*end at 32x64.*max_sz: \[32, 96\]"),
        ("true2d/true2d_window.yml", ["Architecture.Encoder.abs_pos=True", "Train.loader.max_ratio=5"], "Train: .*160"),
        ("satrn/satrn.yml", ["Architecture.Encoder.n_position=20"], r"end at 80x80.*n_position: 32"),
        ("svtrv2/svtrv2_true2d_rctc.yml", ["Architecture.Encoder.max_sz=[32,128]"], r"max_sz: \[64, 128\]"),
        ("svtrv2/svtrv2_mamba_tiny.yml",
         ["Architecture.Encoder.use_pos_embed=True", "Architecture.Encoder.max_sz=[32,64]"], r"max_sz: \[32, 96\]"),
        ("dat/dat_tiny.yml", ["Architecture.Encoder.max_sz=[32,64]"], r"max_sz: \[32, 96\]"),
    ],
)  # fmt: skip
def test_too_large_images_are_refused(path, overrides, repair):
    with pytest.raises(ConfigError, match=repair):
        check(path, *overrides)


@pytest.mark.parametrize(
    "path, overrides",
    [
        ("true2d/true2d.yml", [f"Train.dataset.base_shape={BUCKETS}", "Architecture.Encoder.max_sz=[64,128]"]),
        ("true2d/true2d_window.yml", ["Train.loader.max_ratio=8"]),  # windows know no size of the map
        ("svtrv2/svtrv2_mamba_tiny.yml", ["Architecture.Encoder.max_sz=[8,8]"]),  # no table
        ("dat/dat_tiny.yml",
         ["Architecture.Encoder.max_sz=[32,64]", "Architecture.Encoder.mixer_cfg={D: {pe: log_cpb}}"]),
        ("svtrv2/svtrv2_true2d_rctc.yml",
         ["Architecture.Encoder.max_sz=[32,128]", "Architecture.Encoder.mixer_cfg={True2D: {window_size: 8}}"]),
    ],
)  # fmt: skip
def test_images_that_fit_pass(path, overrides):
    check(path, *overrides)
