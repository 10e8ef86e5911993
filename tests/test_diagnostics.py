"""``Global.diagnose``: numbers from what modules tell, warnings that fire and stay silent, and a run with them."""

import math

import engine_case
import pytest
import torch
from torch import nn

from openrec.config import load_config
from openrec.diagnose.scalars import gradients, keep_some, scalars, summary, weights_of
from openrec.diagnose.watch import Watch
from openrec.engine.trainer import Trainer
from openrec.modeling.decoders.true2d_decoder import True2DDecoder
from openrec.modeling.encoders import build_encoder
from openrec.modeling.encoders.dassm import DASSM
from openrec.modeling.encoders.mamba1d import Mamba1D, Scan1D
from openrec.modeling.encoders.reattn import ReAttention
from openrec.modeling.encoders.svtrv2_mamba import SVTRv2Mamba
from openrec.modeling.encoders.true2d import True2DAttention
from openrec.modeling.layers import Attention
from openrec.modeling.record import Recorder, record, recording


def told(**tensors):
    """As one module "m" tells them."""
    return {("m", key): [torch.as_tensor(t, dtype=torch.float32)] for key, t in tensors.items()}


def one(name, **tensors):
    return scalars(told(**tensors))[f"{name}/m"]


# ---- telling -----------------------------------------------------------------------------------------


class Teller(nn.Module):
    def __init__(self):
        super().__init__()
        self.worked = 0

    def forward(self, x):
        record(self, "attn", x.softmax(-1))
        if recording(self):
            self.worked += 1
        return x + 1


def test_recorder_names_and_leaves_nothing_behind():
    model = nn.Sequential(Teller(), Teller())
    x = torch.randn(2, 3, requires_grad=True)
    model(x)
    assert [m.worked for m in model] == [0, 0]
    with Recorder(model) as recorder:
        model(x)
        model(x)
    assert set(recorder.entries) == {("0", "attn"), ("1", "attn")}
    assert all(len(v) == 2 and not v[0].requires_grad for v in recorder.entries.values())
    assert list(recorder.of("attn")) == ["0", "1"] and not recorder.of("loc")
    model(x)
    assert [m.worked for m in model] == [2, 2] and len(recorder.entries[("0", "attn")]) == 2


def test_recorders_nest_and_reduce():
    model = Teller()
    with Recorder(model) as outer:
        with Recorder(model, lambda key, t: (key, tuple(t.shape))) as inner:
            model(torch.randn(2, 3))
        model(torch.randn(4, 3))
    assert inner.entries == {("", "attn"): [("attn", (2, 3))]}
    assert [t.shape[0] for t in outer.entries[("", "attn")]] == [4]


def test_graphs_hold_nothing_of_it():
    model, x = Teller(), torch.randn(2, 3)
    with Recorder(model) as recorder:
        graph = torch.export.export(model, (x,)).graph_module.code
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), x + 1)
    assert not recorder.entries and "_listener" not in graph and model.worked == 0


def test_only_some_samples_are_kept():
    whole = torch.randn(40, 3, 5, dtype=torch.float64)
    kept = keep_some("attn", whole)
    assert kept.shape == (8, 3, 5) and kept.dtype == torch.float32
    assert kept.untyped_storage().nbytes() == kept.numel() * 4
    assert keep_some("ref", torch.zeros(40, 2)).shape == (40, 2)


# ---- numbers -----------------------------------------------------------------------------------------


def test_points():
    loc = [[[[[0.5, 0.5]], [[1.2, 0.5]], [[-0.1, 1.5]], [[1.0, 0.0]]]]]  # [1, 1, 4, 1, 2]
    assert one("frac_out", loc=loc) == 0.5
    assert one("loc_min", loc=loc) == pytest.approx(-0.1) and one("loc_max", loc=loc) == 1.5
    assert one("offset_rms_px", offset=[[3.0, -4.0]]) == pytest.approx(math.sqrt(12.5))
    ref = [[0.5, 0.5], [0.2, 0.5], [0.9, 0.5], [0.0, 0.0]]
    assert one("offset_share", loc=loc, ref=ref) == pytest.approx(math.sqrt(3) / 2)
    assert one("offset_share", loc=loc, ref=[ref]) == pytest.approx(math.sqrt(3) / 2)


def test_attention():
    flat = torch.full((2, 3, 5), 0.2)
    assert one("attn_entropy", attn=flat) == pytest.approx(1) and one("attn_std", attn=flat) == pytest.approx(0)
    assert one("attn_max", attn=flat) == pytest.approx(0.2) and one("attn_sim", attn=flat) == pytest.approx(1)
    sharp = torch.eye(5)[:3].expand(2, 3, 5)
    assert one("attn_entropy", attn=sharp) == pytest.approx(0, abs=1e-5)
    assert one("attn_sim", attn=sharp) == pytest.approx(0, abs=1e-6) and one("attn_max", attn=sharp) == 1
    assert one("attn_std", attn=sharp) == pytest.approx(0.4)
    two = torch.rand(2, 4, 7).softmax(-1)
    unit = two / two.norm(dim=-1, keepdim=True)
    pairs = (unit @ unit.transpose(1, 2)).sum((1, 2)) - 4
    assert one("attn_sim", attn=two) == pytest.approx(float(pairs.mean() / 12), rel=1e-5)


def test_maps_and_lists_of_weights():
    lists, maps = torch.rand(2, 4, 6, 8).softmax(-1), torch.rand(2, 4, 48).softmax(-1)
    assert weights_of(lists).shape == (2, 4, 6, 8)
    torch.testing.assert_close(weights_of(maps.unflatten(-1, (6, 8))), maps)
    assert one("attn_entropy", attn=maps.unflatten(-1, (6, 8))) == pytest.approx(one("attn_entropy", attn=maps))
    assert "attn_entropy/m" not in scalars(told(attn=torch.ones(2, 3, 1)))  # one place: nothing to choose


def test_blocks_that_look_alike():
    a, b = torch.rand(2, 3, 5).softmax(-1), torch.eye(5)[:3].expand(2, 3, 5)
    entries = {(f"blocks.{i}.mixer", "attn"): [t] for i, t in enumerate((a, a, b))}
    entries[("other.mixer", "attn")] = [b]
    entries |= {(f"blocks.{i}.mixer", "mixed"): [t] for i, t in enumerate((a - 0.2, 0.2 - a))}
    found = scalars(entries)
    assert found["mixed_sim_next/blocks.1.mixer"] == pytest.approx(-1)
    assert found["attn_sim_next/blocks.1.mixer"] == pytest.approx(1)
    assert found["attn_sim_next/blocks.2.mixer"] == pytest.approx(float(torch.cosine_similarity(a, b, dim=-1).mean()))
    assert "attn_sim_next/blocks.0.mixer" not in found and "attn_sim_next/other.mixer" not in found


def grid_of(matrix, shift=(0.0, 0.0)):
    ys, xs = torch.meshgrid((torch.arange(6) + 0.5) / 6, (torch.arange(8) + 0.5) / 8, indexing="ij")
    points = torch.stack((xs, ys), -1) - 0.5
    return (points @ torch.tensor(matrix).T + 0.5 + torch.tensor(shift))[None]


def test_grids_of_transforms():
    unchanged = grid_of([[1.0, 0.0], [0.0, 1.0]])
    assert one("grid_area", grid=unchanged) == pytest.approx(1, abs=1e-5) and one("grid_out", grid=unchanged) == 0
    assert one("grid_fold", grid=unchanged) == 0
    assert one("grid_area", grid=grid_of([[0.5, 0.0], [0.0, 0.2]])) == pytest.approx(0.1, abs=1e-5)
    assert one("grid_fold", grid=grid_of([[-1.0, 0.0], [0.0, 1.0]])) == 1
    assert one("grid_out", grid=grid_of([[1.0, 0.0], [0.0, 1.0]], (0.5, 0.0))) == 0.5
    assert one("theta_move", theta=[[[1.0, 0, 0.3], [0, 1, 0.4]]]) == pytest.approx(0.5)


def test_features_that_are_alike():
    alike = torch.ones(4, 3, 2, 5)
    assert one("feature_spread", feature=alike) == 0 and one("feature_rms", feature=2 * alike) == 2
    signs = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1).expand(4, 3, 2, 5)  # differs between rows alone
    assert one("feature_spread", feature=signs) == pytest.approx(1)
    assert one("feature_spread", feature=alike + signs) == pytest.approx(0.5**0.5)
    columns = (alike + signs).flatten(2).transpose(1, 2)  # the same as [B, N, C]
    assert one("feature_spread", feature=columns) == pytest.approx(0.5**0.5)


def test_pieces_and_summary():
    entries = {
        ("a", "loc"): [torch.zeros(1, 1, 1, 1, 2), torch.full((1, 1, 1, 1, 2), 2.0)],
        ("b", "dt"): [torch.ones(3)],
    }
    found = scalars(entries)
    assert found["loc_min/a"] == 0 and found["loc_max/a"] == 2 and found["frac_out/a"] == 0.5
    found |= {"frac_out/b": 0.0, "grad/x": 7.0}
    means = summary(found)
    assert means["frac_out"] == 0.25 and means["dt_mean"] == 1 and "grad" not in means


def test_gradients_of_the_watch_list():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.sampling_offsets, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
            self.conv_offset = nn.Sequential(nn.Linear(2, 2, bias=False))
            self.transform = nn.ModuleDict({"head": nn.ModuleDict({"stn_fc2": nn.Linear(2, 2, bias=False)})})

    model = Named()
    model.sampling_offsets.weight.grad = torch.full((2, 2), 2.0)
    assert gradients(model) == {
        "grad/sampling_offsets.weight": 4.0, "grad/sampling_offsets.bias": 0.0, "grad/conv_offset.0.weight": 0.0,
        "grad/transform.head.stn_fc2.weight": 0.0,
    }  # fmt: skip


# ---- warnings: one log (or three) that fires, one that does not --------------------------------------


def warned(name, *values, warm_up=0):
    """The warnings of the last of several logs."""
    watch, fresh = Watch(warm_up), []
    for number, value in enumerate(values):
        fresh = watch.check({f"{name}/m": value}, 10 * number + 1)
    return fresh


@pytest.mark.parametrize(
    ("name", "wrong", "fine"),
    [
        ("frac_out", [0.51], [0.49]),
        ("frac_out", [0.1, 0.31], [0.1, 0.29]),
        ("loc_min", [-math.inf], [-3.0]),
        ("loc_max", [math.nan], [3.0]),
        ("attn_std", [math.nan], [0.0]),
        ("attn_max", [math.nan], [1.0]),
        ("attn_entropy", [0.04], [0.06]),
        ("attn_entropy", [0.9995], [0.998]),
        ("attn_sim", [0.96], [0.94]),
        ("attn_sim_next", [0.96], [0.94]),
        ("offset_share", [0.51], [0.49]),
        ("offset_rms_px", [math.inf], [40.0]),
        ("grad", [0.0, 0.0, 0.0], [0.0, 0.0, 1e-9]),
        ("grad", [1.0, 0.0, 0.0, 0.0], [0.0, 0.0]),
        ("decay_mean", [0.04], [0.06]),
        ("decay_mean", [0.99995], [0.9998]),
        ("dt_mean", [math.nan], [0.05]),
        ("grid_area", [0.19], [0.21]),
        ("feature_spread", [0.29], [0.31]),
        ("feature_rms", [math.inf], [230.0]),
    ],
)
def test_warnings(name, wrong, fine):
    assert len(warned(name, *wrong)) == 1 and name in warned(name, *wrong)[0]
    assert warned(name, *fine) == []


def test_flat_attention_is_fine_before_the_end_of_the_warm_up():
    for name, value in (("attn_entropy", 1.0), ("attn_sim", 0.99), ("attn_sim_next", 0.99), ("feature_spread", 0.1)):
        assert warned(name, value, warm_up=5) == []
        assert len(warned(name, value, value, warm_up=5)) == 1  # step 11


@pytest.mark.parametrize(
    ("spans", "losses", "number"),
    [
        ([0.1] * 9, [3.0] * 9, 1),  # nothing moves, nothing is learnt
        ([0.1] * 9, [3.0 - 0.1 * i for i in range(9)], 0),  # it learns anyhow
        ([0.1 + 0.05 * i for i in range(9)], [3.0] * 9, 0),  # the points are on their way
        ([0.1] * 9, [None] * 9, 0),
    ],
)
def test_reference_points_that_stay_while_the_loss_is_flat(spans, losses, number):
    watch, fresh = Watch(warm_up=20), []
    for i, (span, loss) in enumerate(zip(spans, losses)):
        fresh += watch.check({"ref_span/m": span}, 10 * i + 1, loss)
    assert len(fresh) == number and all("ref_mode: soft_argmax" in text for text in fresh)


@pytest.mark.parametrize(("mode", "tells"), [("learned", True), ("soft_argmax", False), ("reading", False)])
def test_true2d_tells_how_far_apart_its_learned_references_lie(mode, tells):
    torch.manual_seed(0)
    decoder = True2DDecoder(16, 10, n_layers=1, n_head=2, max_len=4, map_size=[2, 4], ref_mode=mode)
    label = torch.tensor([[8, 1, 2, 3, 0]])
    with Recorder(decoder) as recorder:
        decoder.train()(torch.randn(1, 16, 2, 4), data=[label, torch.tensor([3])])
    spans = [v for k, v in scalars(recorder.entries).items() if k.startswith("ref_span/")]
    assert len(spans) == tells and all(0 < span < 1 for span in spans)
    with Recorder(decoder) as recorder:
        decoder.eval()(torch.randn(1, 16, 2, 4))  # one step after the other
    assert not any(k.startswith("ref_span/") for k in scalars(recorder.entries))


def test_a_warning_is_told_once_until_it_has_gone():
    watch = Watch()
    logs = [watch.check({"frac_out/m": v}, i) for i, v in enumerate((0.6, 0.7, 0.3, 0.8))]
    assert [len(fresh) for fresh in logs] == [1, 0, 0, 1] and watch.active == {"frac_out/m"}


# ---- modules -----------------------------------------------------------------------------------------


def test_dassm_tells_points_steps_and_decay():
    torch.manual_seed(0)
    block, x = DASSM(32, d_state=2, head_dim=16), torch.randn(2, 32, 4, 6)
    with torch.no_grad():
        block.da_scan.offset.bias.copy_(torch.tensor([1.5, 0.0, 0.0, -1.0]))  # (dx, dy) of both groups
    with Recorder(block) as recorder:
        block(x)
    keys = {name: kept[0] for (name, _), kept in recorder.entries.items()}
    assert set(keys) == {"", "da_scan"}
    loc, ref = recorder.entries[("da_scan", "loc")][0], recorder.entries[("da_scan", "ref")][0]
    assert loc.shape == (2, 2, 24, 1, 2) and ref.shape == (24, 2)
    moved = (loc[:, :, :, 0] - ref) * torch.tensor([6.0, 4.0])
    torch.testing.assert_close(moved[:, 0], torch.tensor([1.5, 0.0]).expand(2, 24, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[:, 1], torch.tensor([0.0, -1.0]).expand(2, 24, 2), atol=1e-5, rtol=0)
    dt, decay = recorder.entries[("", "dt")][0], recorder.entries[("", "decay")][0]
    assert dt.shape == (2, 4, 6, 32) and decay.shape == (2, 4, 6, 32, 2) and (dt > 0).all()
    torch.testing.assert_close(decay[..., 1], torch.exp(-2 * dt))  # A = -1, -2
    found = scalars(recorder.entries)
    assert 0.05 < found["decay_mean/"] < 0.9999 and found["offset_share/da_scan"] == pytest.approx(1.5 / 6 / 2**0.5)


@pytest.mark.parametrize(
    "mixers", ["FGlobal, Global", "FGlobalRe2D*2", "ReAttn*2", "DAT*2", "True2D*2"], ids=lambda m: m.split("*")[0]
)
def test_all_kinds_of_attention_are_compared_by_the_same_numbers(mixers):
    torch.manual_seed(0)
    model = SVTRv2Mamba(dims=[32], depths=[2], num_heads=[2], mixer=[mixers], sub_k=[[1, 1]], max_sz=[16, 32])
    x = torch.randn(3, 3, 16, 32)
    plain = model.eval()(x)
    with Recorder(model) as recorder:
        assert torch.equal(model(x), plain)
    first, second = recorder.of("attn")
    for maps in recorder.of("attn").values():
        assert maps[0].shape[:3] == (3, 2, 32) and maps[0].dtype == torch.float32 and not maps[0].requires_grad
        torch.testing.assert_close(maps[0].sum(-1), torch.ones(3, 2, 32))
    found = scalars(recorder.entries)
    for name in (f"attn_entropy/{first}", f"attn_sim/{first}", f"attn_sim_next/{second}"):
        assert 0 < found[name] <= 1.00001, name


def test_attention_tells_what_it_multiplies_with(monkeypatch):
    module, x = Attention(8, 2, qkv_bias=True).eval(), torch.randn(2, 5, 8)
    with Recorder(module) as recorder, torch.autocast("cpu", torch.bfloat16):
        module(x)
    low = recorder.entries[("", "attn")][0]
    with Recorder(module) as recorder:
        out = module(x)
        with Recorder(module, samples=1) as some:
            module(x)
    (maps,) = recorder.entries[("", "attn")]
    assert torch.equal(some.entries[("", "attn")][0], maps[:1])  # what is kept is all that is formed
    v = module.qkv(x).view(2, 5, 3, 2, 4)[:, :, 2].transpose(1, 2)
    torch.testing.assert_close(module.proj((maps @ v).transpose(1, 2).reshape(2, 5, 8)), out)
    torch.testing.assert_close(low, maps, rtol=0, atol=2e-2)
    torch.testing.assert_close(low.sum(-1), torch.ones(2, 2, 5))  # float32 all the way
    monkeypatch.setattr("openrec.modeling.layers.tell_attention", None)
    torch.testing.assert_close(module(x), out, rtol=0, atol=0)  # nobody listens: maps are not formed


def test_reattention_tells_its_maps_before_and_after_the_mixing():
    x = torch.randn(2, 24, 32)
    same, normed = ReAttention(32, 4, re_norm="none"), ReAttention(32, 4)
    found = []
    for module in (same, normed):
        with Recorder(module) as recorder:
            module(x)
        found.append(scalars(recorder.entries))
        found.append({key: kept[0] for (_, key), kept in recorder.entries.items()})
    torch.testing.assert_close(found[1]["mixed"], found[1]["attn"])
    assert found[0]["mixed_sim/"] == pytest.approx(found[0]["attn_sim/"])
    assert not torch.allclose(found[3]["mixed"].sum(-1), torch.ones(2, 4, 24))
    assert found[2]["attn_sim/"] > 0.8 > 0.2 > found[2]["mixed_sim/"]  # BatchNorm takes out what all queries share


def scan_of_a_map(kind, **options):
    """A layer whose step size at a place depends on that place alone, and what scans a map with it."""
    if kind == "DASSM":
        layer = DASSM(8, d_state=2, head_dim=8, **options)
        return layer, layer.scan
    layer = Mamba1D(8, d_state=2, **options)
    for scan in (m for m in layer.modules() if isinstance(m, Scan1D)):
        nn.init.zeros_(scan.conv1d.bias)
        scan.conv1d.weight.data[..., :-1] = 0  # of the convolution the place itself is left
    return layer, layer


@pytest.mark.parametrize("order", ["row", "col"])
@pytest.mark.parametrize(("kind", "options"), [("DASSM", {}), ("Mamba1D", {}), ("Mamba1D", {"bidirectional": True})])
def test_step_sizes_are_told_at_their_places(kind, options, order):
    torch.manual_seed(0)
    layer, scan = scan_of_a_map(kind, scan_order=order, **options)
    x = torch.zeros(1, 8 if kind == "Mamba1D" else layer.dt_projs_bias.numel(), 4, 6)
    x[:, :, 1, 4] = 1
    with Recorder(layer) as recorder:
        scan(x)
    told = [t for key in ("dt", "decay") for tensors in recorder.of(key).values() for t in tensors]
    assert len(told) == (4 if options else 2)
    for t in told:
        others = t.flatten(3)[0, 0, 0]  # of a place without input
        assert (t.flatten(3)[0] - others).abs().amax(-1).gt(1e-6).nonzero().tolist() == [[1, 4]]


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_tell_their_last_state(reverse):
    torch.manual_seed(0)
    scan, x = Scan1D(6, 16, d_state=3, reverse=reverse), torch.randn(4, 9, 6)
    with Recorder(scan, samples=2) as recorder:
        y = scan(x)
    assert torch.equal(y, scan(x)) and {key for _, key in recorder.entries} == {"dt", "decay", "state"}
    assert all(len(t) == 2 for key in ("dt", "decay") for t in recorder.of(key)[""])
    last, (state,) = 0 if reverse else -1, recorder.of("state")[""]
    u = scan.convolve(x)[:, last]
    c = scan.x_proj(u)[:, None, -3:]
    torch.testing.assert_close((state * c).sum(-1) + scan.D * u, y[:, last])
    assert scalars(recorder.entries)["state_rms/"] == pytest.approx(float(state.square().mean().sqrt()))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("size", "place"), [((4, 8), (1, 6)), ((5, 7), (4, 6)), ((5, 7), (2, 0))])
def test_windows_tell_what_is_looked_at(size, place, shift):
    layer, x = True2DAttention(8, 2, size, window_size=4, shift=shift), torch.zeros(1, *size, 8)
    x[0, place[0], place[1]] = 9
    with torch.no_grad():  # q is 1 everywhere, k the map itself
        layer.qkv.weight.copy_(torch.cat((torch.zeros(8, 8), torch.eye(8), torch.eye(8))))
        layer.qkv.bias.copy_(torch.tensor([1.0] * 8 + [0.0] * 16))
        layer.bias.relative_position_bias_table.zero_()
    with Recorder(layer) as recorder:
        layer(x)
    (looked,) = recorder.entries["", "looked"]
    assert looked.shape == (1, *size) and divmod(int(looked.argmax()), size[1]) == place
    assert looked.sum() == pytest.approx(size[0] * size[1], rel=1e-5)  # every place asks once, none looks at padding
    whole = True2DAttention(8, 2, size)
    with Recorder(whole) as recorder:
        whole(x)
    assert set(recorder.entries) == {("", "attn"), ("", "table")}


def test_stages_tell_maps_whatever_they_give():
    encoder = build_encoder({
        "name": "SVTRv2LNConvTwo33", "max_sz": [32, 64], "dims": [8, 16, 32], "depths": [1, 1, 1],
        "num_heads": [1, 2, 2], "mixer": [["Conv"], ["FGlobal"], ["Global"]], "sub_k": [[1, 1], [2, 1], [-1, -1]],
        "last_stage": False, "feat2d": False,
    })  # fmt: skip
    with Recorder(encoder) as recorder:
        assert encoder(torch.randn(1, 3, 32, 64)).shape == (1, 64, 32)
    maps = [t.shape[1:] for tensors in recorder.of("feature").values() for t in tensors]
    assert maps == [(8, 8, 16), (16, 8, 16), (32, 4, 16)]


# ---- in a run ----------------------------------------------------------------------------------------

MAMBA = {
    "name": "SVTRv2Mamba", "max_sz": [32, 64], "use_pos_embed": False, "dims": [8, 16, 32], "depths": [1, 1, 1],
    "num_heads": [1, 1, 1], "head_dim": 16, "mixer": [["Conv"], ["Mamba"], ["Mamba"]], "feat2d": True,
    "final_norm": True,
}  # fmt: skip
CHANGES = {"Architecture.Encoder": MAMBA, "Global.diagnose": True, "Global.diagnose_step": 3, "Global.max_steps": 7}


def test_a_run_logs_and_changes_nothing(tmp_path):
    runs = {}
    for name, on in (("with", True), ("without", False)):
        changes = {**CHANGES, "Global.diagnose": on, "Global.output_dir": str(tmp_path / name)}
        Trainer(engine_case.config(tmp_path, {**changes, "Global.use_tensorboard": on})).train()
        runs[name] = [(r["step"], r["loss"]) for r in engine_case.rows(tmp_path / name, "train")]
    assert runs["with"] == runs["without"]
    assert not engine_case.rows(tmp_path / "without", "diagnose")
    logged = engine_case.rows(tmp_path / "with", "diagnose")
    assert [row["step"] for row in logged] == [1, 3, 6]
    scan = "encoder.stages.1.blocks.0.token_mixer"
    for row in logged:
        assert row["frac_out"] == row[f"frac_out/{scan}.da_scan"] == 0 or row["step"] > 1
        assert 0 < row[f"decay_mean/{scan}"] < 1 and row["attn_entropy/decoder"] > 0
        assert row[f"grad/{scan}.da_scan.offset.weight"] > 0 and isinstance(row["warnings"], list)
    assert not any("attn" in name or "spread" in name for row in logged for name in row["warnings"])  # still new
    assert "offset_rms_px" in logged[0] and list(tmp_path.glob("with/events*"))


@pytest.mark.parametrize(("warm_up", "steps"), [(0, 100), (40, 100), (300, 300)])
def test_flat_attention_of_new_weights_is_no_warning(tmp_path, warm_up, steps):
    scheduler = {"name": "LinearLR", "warmup_epoch": warm_up, "warmup_in_steps": True}
    trainer = Trainer(engine_case.config(tmp_path, {**CHANGES, "LRScheduler": scheduler, "Global.max_steps": 900}))
    assert trainer.diagnosis.watch.warm_up == steps


def test_what_is_told_only_while_reading(tmp_path):
    text = (engine_case.ROOT / "configs" / "rec" / "attn" / "soft_attn_tiny.yml").as_posix()
    words = [f"{s}.dataset.size=8" for s in ("Train", "Eval")] + [
        "Train.loader.batch_size_per_card=4", "Train.loader.num_workers=0", "Global.diagnose=true",
        "Global.max_steps=1", f"Global.output_dir={tmp_path}",
    ]  # fmt: skip
    Trainer(load_config(text, words)).train()
    (row,) = engine_case.rows(tmp_path, "diagnose")
    assert 0 < row["attn_entropy/decoder"] <= 1 and 0 < row["attn_sim/decoder"] <= 1.0001


def test_a_continued_run_remembers(tmp_path):
    changes = {**CHANGES, "Global.max_steps": 4, "Global.save_latest_step": 1}
    Trainer(engine_case.config(tmp_path, changes)).train()
    trainer = Trainer(engine_case.config(tmp_path, {**changes, "Global.max_steps": 7}))
    assert trainer.diagnosis.watch.first and trainer.diagnosis.watch.step == 3
    trainer.train()
    assert [r["step"] for r in engine_case.rows(tmp_path / "out", "diagnose")] == [1, 3, 6]


def test_every_model_tells_its_features(tmp_path):
    changes = {"Global.diagnose": True, "Global.max_steps": 2, "Architecture.Decoder": {"name": "CTCDecoder"}}
    Trainer(engine_case.config(tmp_path, changes)).train()
    rows = engine_case.rows(tmp_path / "out", "diagnose")
    assert rows and all(0 < row["feature_spread/encoder"] < 1 for row in rows)
