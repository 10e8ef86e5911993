"""Every part of the renderer can be left out, and leaving out nothing changes nothing."""

import numpy as np
import pytest

from openrec.data.render import WordRenderer, paint
from openrec.data.render.switches import SWITCHES
from openrec.errors import ConfigError

COUNT = 150


def words(without=None, **options):
    renderer = WordRenderer(language="en", max_length=12, without=without, **options)
    return [renderer.render(np.random.default_rng((3, i))) for i in range(COUNT)]


@pytest.fixture(scope="module")
def usual():
    return words()


@pytest.mark.parametrize("name", SWITCHES)
def test_a_part_that_is_left_out_changes_pictures(name, usual):
    families = len({w.font for w in usual})
    if name == "families" and families < 3:
        pytest.skip("one family: there is nothing to choose from")
    assert [w.jpeg for w in words(name)] != [w.jpeg for w in usual]


def test_nothing_left_out_is_the_usual_picture(usual):
    assert [w.jpeg for w in words([])] == [w.jpeg for w in usual]


def test_what_is_left_out_is_gone(monkeypatch):
    real, asked = paint.colours, []
    monkeypatch.setattr(paint, "colours", lambda rng, contrast: asked.append(contrast) or real(rng, contrast))
    words("low_contrast")
    assert min(asked) == 100
    assert not any(c in "!.,'-:&?" for w in words(["marks", "numbers"], random_share=0.0) for c in w.text[-1])
    few, many = (np.bincount([len(w.text) for w in words(x)], minlength=13)[10:].sum() for x in (None, "lengths"))
    assert many > few + 10


def test_an_unknown_part_is_refused():
    with pytest.raises(ConfigError, match="perspective"):
        words("perspectiv")
