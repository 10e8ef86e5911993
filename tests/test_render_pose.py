"""Words that are turned and bent on purpose: test sets for the transforms that straighten them."""

import numpy as np
import pytest

from openrec.data.render import WordRenderer
from openrec.data.render.geometry import Pose, draw_warp
from openrec.data.synthetic import SyntheticWords
from openrec.errors import ConfigError


def warps(**ranges):
    pose = Pose.checked(ranges.get("rotation"), ranges.get("curvature"))
    return [draw_warp(np.random.default_rng(i), (80.0, 20.0), (75.0, 15.0), 0.0, pose) for i in range(200)]


def test_rotation_lies_in_its_range_both_ways():
    angles = [np.degrees(np.arctan2(w.matrix[1, 0], w.matrix[0, 0])) for w in warps(rotation=[10, 30])]
    assert 9.9 < np.abs(angles).min() < 12 and 28 < np.abs(angles).max() < 30.1
    assert 60 < (np.array(angles) > 0).sum() < 140
    assert all(not w.bent for w in warps(rotation=[10, 30]))


def test_curvature_is_the_arc_of_the_baseline():
    arcs = [np.degrees(2 * 75.0 / w.radius) for w in warps(curvature=[20, 90])]
    assert 19.9 < np.abs(arcs).min() < 23 and 87 < np.abs(arcs).max() < 90.1
    assert min(abs(w.radius) for w in warps(curvature=[180, 180])) >= 45  # three half-heights
    assert all(w.radius == 0 for w in warps(curvature=[0, 0]))


@pytest.mark.parametrize("ranges", [{"rotation": [30, 10]}, {"rotation": [0, 91]}, {"curvature": [-1, 5]}])
def test_impossible_ranges_are_refused(ranges):
    with pytest.raises(ConfigError, match=r"expected \[least, most\] within 0 to"):
        WordRenderer(language="en", **ranges)


def test_data_set_hands_them_on_and_the_default_is_unchanged():
    steps = [
        {"RecTVResize": {"image_shape": [32, 96]}},
        {"CTCLabelEncode": {"max_text_length": 8}},
        {"KeepKeys": {"keep_keys": ["image"]}},
    ]

    def word(**ranges):
        data = SyntheticWords(steps, size=4, max_length=6, mode="Eval", **ranges)
        return data.render(0, np.random.default_rng(7))

    assert word().jpeg == word(rotation=None, curvature=None).jpeg
    bent = word(curvature=[80, 80])
    assert bent.jpeg != word().jpeg and bent.text == word().text
    for box in bent.boxes:
        assert box[2] > box[0] and box[3] > box[1]
