"""Which decoder fits which encoder, and what stands between them; weight-decay names of the whole model (T38)."""

import pytest
import torch
from torch import nn

from openrec.errors import ConfigError
from openrec.modeling import BaseRecognizer


class Encoder(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.out_rank, self.out_channels = rank, 3

    def forward(self, x):
        return x if self.out_rank == 4 else x.flatten(2).transpose(1, 2)


class Decoder(nn.Module):
    def __init__(self, needs, pool_h=False):
        super().__init__()
        self.needs, self.pool_h = needs, pool_h

    def forward(self, x, data=None):
        return x, data


@pytest.mark.parametrize(
    "rank, needs, pool_h, shape",
    [
        (4, "2d", False, (2, 3, 4, 5)),
        (4, "any", False, (2, 3, 4, 5)),
        (4, "seq", False, (2, 20, 3)),
        (4, "seq", True, (2, 5, 3)),
        (3, "seq", False, (2, 20, 3)),
        (3, "any", False, (2, 20, 3)),
    ],
)
def test_bridge(rank, needs, pool_h, shape):
    x = torch.randn(2, 3, 4, 5)
    out, data = BaseRecognizer(encoder=Encoder(rank), decoder=Decoder(needs, pool_h))(x, data=["label"])
    assert out.shape == shape and data == ["label"]
    if shape == (2, 20, 3):
        assert torch.equal(out[:, 1 * 5 + 2], x[:, :, 1, 2])  # row-major
    if pool_h:
        torch.testing.assert_close(out[:, 2], x[..., 2].mean(2))


def test_a_sequence_cannot_feed_a_decoder_that_needs_a_map():
    with pytest.raises(ConfigError, match="Take an encoder that gives a map"):
        BaseRecognizer(encoder=Encoder(3), decoder=Decoder("2d"))


class WithNames(nn.Module):
    needs = "any"

    def __init__(self, names):
        super().__init__()
        self.names = names

    def no_weight_decay(self):
        return self.names


@pytest.mark.parametrize("use_wd", [True, False])
def test_names_without_decay_are_the_union(use_wd):
    both = BaseRecognizer(encoder=WithNames({"a"}), decoder=WithNames(["b"]), use_wd=use_wd)
    assert both.no_weight_decay() == ({"a", "b"} if use_wd else set())
    assert BaseRecognizer(encoder=Encoder(4), decoder=WithNames({"b"})).no_weight_decay() == {"b"}
    assert BaseRecognizer(decoder=WithNames({"b"})).no_weight_decay() == {"b"}


def test_only_present_children_are_called():
    model = BaseRecognizer(encoder=Encoder(4), decoder=Decoder("any"))
    assert [name for name, _ in model.named_children()] == ["encoder", "decoder"]
    assert BaseRecognizer(encoder=Encoder(4))(torch.zeros(1, 3, 2, 2)).shape == (1, 3, 2, 2)
