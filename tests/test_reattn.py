"""Re-attention: plain attention at its start, and an output that keeps its scale."""

import pytest
import torch

from openrec.errors import ConfigError
from openrec.modeling.encoders.reattn import ReAttention, ReAttnBlock
from openrec.modeling.encoders.svtrv2_mamba import SVTRv2Mamba
from openrec.modeling.layers import Attention, flagged_names


def test_without_norm_and_mixing_it_is_plain_attention():
    plain, module = Attention(32, 4, qkv_bias=True), ReAttention(32, 4, re_norm="none")
    missing = module.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert sorted(missing) == ["theta.bias", "theta.weight"]
    x = torch.randn(2, 24, 32)
    torch.testing.assert_close(module(x), plain(x))
    torch.testing.assert_close(module(x.view(2, 4, 6, 32)).flatten(1, 2), plain(x))


def test_mixing_is_between_heads():
    plain, module = Attention(8, 2, qkv_bias=True), ReAttention(8, 2, re_norm="none")
    module.load_state_dict(plain.state_dict(), strict=False)
    module.theta.weight.data.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]])[:, :, None, None])
    x = torch.randn(2, 5, 8)
    q, k, v = plain.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    maps = (q @ k.transpose(-1, -2) * plain.scale).softmax(-1).flip(1)
    torch.testing.assert_close(module(x), plain.proj((maps @ v).transpose(1, 2).reshape(2, 5, 8)))


@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize("sharp", [0.25, 1.0, 4.0, 16.0])
def test_scale_of_the_output(sharp, n):
    torch.manual_seed(0)
    x = torch.randn(4, n, 64)
    plain = Attention(64, 4, qkv_bias=True)
    torch.nn.init.normal_(plain.qkv.weight, std=0.125)
    plain.qkv.weight.data[:128] *= sharp**0.5
    torch.nn.init.eye_(plain.proj.weight)
    torch.nn.init.zeros_(plain.proj.bias)
    spread = {}
    for scale in (None, "one", "head"):
        module = ReAttention(64, 4, re_norm="bn", re_scale=scale)
        module.load_state_dict(plain.state_dict(), strict=False)
        spread[scale] = module.train()(x).detach().std().item()
    assert spread["one"] / spread[None] == pytest.approx(n**0.5, rel=1e-3)  # by default 'seq'
    assert spread["one"] / spread["head"] == pytest.approx(4, rel=1e-3)  # sqrt(64 / 4)
    values = plain.qkv(x)[..., 128:].detach().std().item()
    assert 1 / 3 < spread[None] / values < 3
    if sharp > 1:  # flat maps are mostly averaged away by plain attention, and BatchNorm takes the average out
        reference = plain(x).detach().std().item()
        assert 1 / 3 < spread[None] / reference < 3 and spread["one"] / reference > 5


@pytest.mark.parametrize(
    ("options", "scale"), [({}, "seq"), ({"re_norm": "none"}, "one"), ({"re_scale": "one"}, "one")]
)
def test_default_scale_goes_with_the_norm(options, scale):
    model = SVTRv2Mamba(
        dims=[32], depths=[1], num_heads=[2], mixer=["ReAttn"], sub_k=[[1, 1]], mixer_cfg={"ReAttn": options}
    )
    assert model.stages[0].blocks[0].attn.re_scale == scale


def test_skeleton_keeps_the_identity_and_evaluates_alone():
    model = SVTRv2Mamba(
        dims=[32, 32], depths=[1, 2], num_heads=[2, 2], mixer=["Conv", "ReAttn*2"], use_pos_embed=False, final_norm=True
    )
    blocks = [m for m in model.modules() if isinstance(m, ReAttnBlock)]
    assert len(blocks) == 2 and all(torch.equal(b.attn.theta.weight[..., 0, 0], torch.eye(2)) for b in blocks)
    assert sum("theta" in name for name in flagged_names(model)) == 4
    x = torch.randn(3, 3, 32, 64)
    model(x).sum().backward()
    assert blocks[0].attn.theta.weight.grad.abs().max() > 0
    model.eval()
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"re_norm": "ln"}, {"re_scale": "two"}])
def test_refusals(options):
    with pytest.raises(ConfigError, match="must be"):
        ReAttention(8, 2, **options)
