"""Exported files read what the checkpoint reads, or are not written."""

import json

import numpy as np
import pytest
import reading_case as case
import torch

from openrec import export_format
from openrec.checkpoint import read_checkpoint, save_checkpoint
from openrec.config import load_config, resolve_charset
from openrec.errors import CheckpointError, ConfigError
from openrec.export import onnx_file, verify
from openrec.export.onnx_session import SIZES, OnnxBackend, check_size
from openrec.export.run import export
from openrec.export.subject import Sizes, Subject
from openrec.export.trace import trace
from openrec.modeling.layers import as_vector
from openrec.recognizer import load

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

MAMBA = {
    "name": "SVTRv2Mamba", "use_pos_embed": False, "dims": [16, 32], "depths": [1, 1], "num_heads": [1, 1],
    "head_dim": 8, "mixer": [["Conv"], ["Mamba"]], "sub_k": [[2, 1], [-1, -1]], "feat2d": True, "final_norm": True,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "best.pth"
    return case.checkpoint(path, case.config(Architecture__Encoder=MAMBA))


@pytest.fixture(scope="module")
def recognizer(weights):
    return load(weights, device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return case.write_pictures(tmp_path_factory.mktemp("pictures"), 24, broken=(5,))


@pytest.fixture(scope="module")
def made(recognizer):
    """The graph, made once: that takes longest."""
    subject = Subject(recognizer)
    return onnx_file.make_graph(subject, subject.sizes())


@pytest.fixture(scope="module")
def written(recognizer, images, made, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "make_graph", lambda *_: made)
        return export(recognizer, tmp_path_factory.mktemp("onnx") / "new" / "m.onnx", images=str(images))


@pytest.fixture(scope="module")
def graph(written):
    return onnx.load(str(written.path))


def test_agreement(written):
    found = written.agreement
    assert found.good and found.texts == found.pictures >= 23 and found.largest < 1e-3
    assert len({w for h, w in found.widths if h == 32}) >= 4, "four widths"
    assert "texts equal" in str(written) and "height 32 to 64" in str(written)


def test_standard_operators_alone(graph):
    onnx.checker.check_model(graph, full_check=True)
    assert {n.domain for n in graph.graph.node} <= {"", "ai.onnx"} and not graph.functions
    assert {o.domain for o in graph.opset_import} == {""}
    kinds = {n.op_type for n in graph.graph.node}
    assert "GridSample" in kinds and not kinds & {"Scan", "Loop", "If"}


def test_nothing_of_this_machine(written):
    content = written.path.read_bytes()
    assert b"/openrec/modeling" not in content and b"stack_trace" not in content


def test_free_axes_and_metadata(graph, recognizer):
    shape = graph.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", 3, "height", "width"]
    texts = {p.key: p.value for p in graph.metadata_props}
    _, charset, preprocess = export_format.unpack(texts, "graph")
    assert tuple(charset["characters"]) == recognizer.charset.characters
    assert preprocess == recognizer.preprocess.state()
    assert json.loads(texts[SIZES]) == {"height": [32, 64, 1], "width": [16, 320, 1]}


def test_reads_through_the_same_door(written, recognizer, images):
    exported = load(written.path, device="cpu")
    ours, theirs = recognizer(str(images)), exported(str(images), batch_size=5)
    assert [t.text for t in ours] == [t.text for t in theirs] and sum(bool(t.text) for t in ours) > 10
    assert [bool(t.error) for t in ours] == [bool(t.error) for t in theirs]
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a.char_scores, b.char_scores, atol=1e-3)
        assert a.char_x == b.char_x
    assert "onnxruntime" in exported.backend.name


def test_a_size_it_was_not_made_for(written):
    backend = OnnxBackend(written.path, CPU)
    with pytest.raises(ConfigError, match="width 16 to 320 px, got 400"):
        backend.run(np.zeros((1, 3, 32, 400), np.float32))
    check_size((1, 3, 32, 96), {})
    with pytest.raises(ConfigError, match="in steps of 4"):
        check_size((1, 3, 32, 97), {"width": [16, 320, 4]})


def test_a_difference_is_refused_and_its_layer_named(recognizer, images, made, tmp_path, monkeypatch):
    """One weight of one layer is spoilt on the way to the file."""
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(made.proto)
    for tensor in spoilt.graph.initializer:
        if "stages.1.blocks.0.token_mixer.conv2d.weight" in tensor.name:
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * -3).tobytes()
    monkeypatch.setattr(onnx_file, "make_graph", lambda *_: made._replace(proto=spoilt))
    with pytest.raises(verify.ExportRefused) as refused:
        export(recognizer, tmp_path / "m.onnx", images=str(images))
    assert '"encoder.stages.1.blocks.0.token_mixer.conv2d"' in str(refused.value), str(refused.value)
    assert not list(tmp_path.iterdir()), "nothing may be left"


@pytest.mark.slow
def test_package(recognizer, images, tmp_path):
    done = export(recognizer, tmp_path / "m.pt2", "pt2", images=str(images), count=8)
    assert done.agreement.good, str(done.agreement)
    exported = load(done.path, device="cpu")
    assert [t.text for t in exported(str(images))] == [t.text for t in recognizer(str(images))]
    assert "torch.export" in exported.backend.name
    assert b"/openrec/modeling" not in done.path.read_bytes()


@pytest.mark.slow
def test_package_compiled_ahead_of_time(recognizer, images, tmp_path):
    done = export(recognizer, tmp_path / "m.pt2", "aoti", images=str(images), count=8)
    exported = load(done.path, device="cpu")
    assert done.agreement.good and "AOTInductor" in exported.backend.name
    assert [t.text for t in exported(str(images))] == [t.text for t in recognizer(str(images))]


@pytest.mark.parametrize("half", (False, True))
def test_safetensors(recognizer, images, tmp_path, half):
    from safetensors.torch import load_file

    done = export(recognizer, tmp_path / "m.safetensors", "safetensors", images=str(images), half=half)
    exported = load(done.path, device="cpu")
    same = [a.text == b.text for a, b in zip(exported(str(images)), recognizer(str(images)))]
    assert all(same) if not half else sum(same) >= 20
    size = sum(t.numel() for t in recognizer.model.state_dict().values())
    assert done.path.stat().st_size < size * (2.2 if half else 4.4) + 20_000
    written, model = load_file(done.path), recognizer.model
    buffers = {name for name, tensor in model.named_buffers() if tensor.is_floating_point()} & set(written)
    assert buffers and all(written[name].dtype == torch.float32 for name in buffers)  # tables must stay exact
    assert {written[name].dtype for name, _ in model.named_parameters()} == {torch.float16 if half else torch.float32}


def test_options_that_cannot_be(recognizer, tmp_path):
    for arguments, message in (
        ({"kind": "torchscript"}, "expected one of"),
        ({"half": True}, "float16 is for safetensors"),
        ({"count": 0}, "at least one picture"),
        ({"opset": 12}, "opset: expected 18"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(recognizer, tmp_path / "m", **arguments)


def test_files_that_are_no_export(tmp_path):
    for name in ("m.onnx", "m.pt2"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(CheckpointError):
            load(tmp_path / name, device="cpu")


def test_sizes_follow_the_encoder(recognizer):
    subject = Subject(recognizer)
    assert subject.sizes() == Sizes((32, 64), (16, 320)) and subject.sizes(640).width == (16, 640)
    assert subject.sizes().positions() == 16 * 80
    encoder = subject.card.config["Architecture"]["Encoder"]
    encoder |= {"use_pos_embed": True, "max_sz": [32, 128]}
    assert subject.sizes() == Sizes((32, 32), (16, 128))
    with pytest.raises(ConfigError, match="position tables end at 128"):
        subject.sizes(256)


def test_sizes_follow_the_decoder(tmp_path):
    subject = Subject(tiny("attn/soft_attn_tiny", tmp_path))
    assert subject.model.decoder.largest_map == (8, 24) and subject.sizes() == Sizes((32, 32), (16, 96))
    assert subject.sizes(64).width == (16, 64)
    with pytest.raises(ConfigError, match="position tables end at 96 px, got 97"):
        subject.sizes(97)
    subject.model.decoder.pos_embed = None
    assert subject.sizes() == Sizes((32, 32), (16, 320)) and subject.sizes(640).width == (16, 640)


class Scaled(torch.nn.Module):
    """Divides by the size of a map a quarter as large as the picture."""

    def forward(self, images):
        height, width = (-(-side // 4) for side in images.shape[-2:])
        return images.mean() / as_vector(images, width, (height - 1) / 2)


def test_a_size_as_a_number_stays_free(tmp_path):
    sizes, images = Sizes((32, 32), (16, 96)), torch.rand(1, 3, 32, 40)
    subject = Scaled()
    subject.example = lambda _: torch.rand(2, 3, 32, 96)
    traced = trace(subject, sizes).module()(images)
    torch.testing.assert_close(traced, images.mean() / torch.tensor([10.0, 3.5]))


@pytest.mark.slow
def test_one_size_alone(recognizer, images, tmp_path):
    done = export(recognizer, tmp_path / "m.pt2", "pt2", images=[case.picture(3, 128, 32)] * 2, size=(32, 128))
    assert set(done.agreement.widths) == {(32, 128)}


def tiny(name, tmp_path):
    """A checkpoint of a shipped ``*_tiny.yml`` with random weights."""
    content = load_config(f"configs/rec/{name}.yml")
    return load(case.checkpoint(tmp_path / "m.pth", content, resolve_charset(content)), device="cpu")


def gtc(tmp_path):
    guide = {"name": "NRTRDecoder", "num_encoder_layers": 0, "num_decoder_layers": 1, "max_len": 5, "nhead": 1}
    decoder = {"name": "GTCDecoder", "infer_gtc": True, "gtc_decoder": guide, "ctc_decoder": {"name": "RCTCDecoder"}}
    post = {"name": "GTCLabelDecode", "gtc_label_decode": {"name": "NRTRLabelDecode"}}
    content = case.config(Architecture__Encoder=MAMBA, Architecture__Decoder=decoder, PostProcess=post)
    return case.checkpoint(tmp_path / "gtc.pth", content)


@pytest.mark.slow
@pytest.mark.parametrize("branch", ("ctc", "gtc"))
def test_a_branch_of_gtc(tmp_path, images, branch):
    reader = load(gtc(tmp_path), device="cpu", branch=branch)
    done = export(reader, tmp_path / "m.pt2", "pt2", images=str(images), count=8)
    exported = load(done.path, device="cpu")
    assert [t.text for t in exported(str(images))] == [t.text for t in reader(str(images))]
    assert (
        exported.card.config["Architecture"]["Decoder"]["name"] == {"ctc": "RCTCDecoder", "gtc": "NRTRDecoder"}[branch]
    )


def test_a_branch_that_no_graph_holds(tmp_path):
    content = read_checkpoint(gtc(tmp_path))
    reader = load(gtc(tmp_path), device="cpu", branch="gtc")
    reader.card.config["Architecture"]["Decoder"]["gtc_decoder"]["name"] = "SMTRDecoder"
    with pytest.raises(ConfigError, match="--branch ctc"):
        Subject(reader)
    save_checkpoint(content, tmp_path / "same.pth")


SYSTEMS = [
    "svtrv2/svtrv2_mamba_tiny",
    "svtrv2/svtrv2_attn_tiny",
    "svtrv2/svtrv2_true2d_tiny",
    "svtrv2/svtrv2_bimamba1d_tiny",
    "satrn/satrn_tiny",
    "true2d/true2d_tiny",
    "true2d/true2d_window_tiny",
    "true2d/true2d_enc_nrtr_dec_tiny",
    "attn/soft_attn_tiny",
    "dat/dat_tiny",
    "aster/aster_tps_tiny",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_as_onnx(name, tmp_path, images):
    done = export(tiny(name, tmp_path), tmp_path / "m.onnx", images=str(images))
    assert done.agreement.good and len({w for _, w in done.agreement.widths}) >= 4


def test_tool(weights, images, tmp_path):
    words = ("--model", weights, "--to", "safetensors", "--output", tmp_path / "m.safetensors", "--images", images)
    done = case.run_tool("export_rec.py", *words)
    assert done.returncode == 0 and "23 of 23 texts equal" in done.stdout, done.stderr
    done = case.run_tool(
        "infer_rec.py", "--model", tmp_path / "m.safetensors", "--images", images, "--output", tmp_path / "r.txt"
    )
    assert done.returncode == 0 and (tmp_path / "r.txt").is_file()
