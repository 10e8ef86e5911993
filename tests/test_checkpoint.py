"""Checkpoint files: whole or not at all, nothing in them is run, and weights find their place."""

import errno
import io
import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from openrec import checkpoint
from openrec.checkpoint import LoadReport, load_exactly, load_weights, read_checkpoint, save_checkpoint
from openrec.errors import CheckpointError


class Reader(nn.Module):
    """A model whose heads have the names of a recogniser's."""

    def __init__(self, head="decoder", classes=5):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.decoder = nn.Module()
        ctc = nn.Linear(4, classes)
        if head == "decoder":
            self.decoder.fc = ctc
        else:
            self.decoder.gtc_decoder = nn.Linear(4, 7)
            self.decoder.ctc_decoder = nn.Module()
            self.decoder.ctc_decoder.fc = ctc


def test_what_is_saved_comes_back_in_plain_types(tmp_path):
    class Attr(dict):
        pass

    state = {
        "epoch": np.int64(3),
        "state_dict": OrderedDict(w=torch.arange(3.0)),
        "config": Attr(a=Attr(b=[1, (2, 3.5)])),
        "metrics": {"acc": np.float64(0.5), "list": np.arange(3)},
        "optimizer": None,
    }
    save_checkpoint(state, tmp_path / "x" / "latest.pth")
    back = torch.load(tmp_path / "x" / "latest.pth", weights_only=True)
    assert type(back["config"]) is dict and back["config"] == {"a": {"b": [1, (2, 3.5)]}}
    assert type(back["epoch"]) is int and type(back["metrics"]["acc"]) is float
    assert back["metrics"]["list"].tolist() == [0, 1, 2] and back["optimizer"] is None
    assert os.listdir(tmp_path / "x") == ["latest.pth"]


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, where):
    path = tmp_path / "latest.pth"
    save_checkpoint({"state_dict": {"w": torch.zeros(2)}, "epoch": 1}, path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "write":

        class Full(io.FileIO):
            def write(self, data):
                full()

        monkeypatch.setattr(checkpoint.os, "fdopen", lambda handle, mode: Full(handle, mode))
    else:
        monkeypatch.setattr(checkpoint.os, where, full)
    with pytest.raises(CheckpointError, match=r"(?s)latest.pth.*No space left.*unchanged.*MB: free some space"):
        save_checkpoint({"state_dict": {"w": torch.ones(2)}, "epoch": 2}, path)
    monkeypatch.undo()
    assert read_checkpoint(path)["epoch"] == 1 and os.listdir(tmp_path) == ["latest.pth"]


def test_t22_config_of_openocrs_own_class_loads(tmp_path):
    module = types.ModuleType("tools.engine.config")

    class AttrDict(dict):
        def __setattr__(self, key, value):
            self[key] = value

        def __getattr__(self, key):
            raise AttributeError(key)

    AttrDict.__module__, AttrDict.__qualname__ = "tools.engine.config", "AttrDict"
    module.AttrDict = AttrDict
    names = {
        "tools": types.ModuleType("tools"),
        "tools.engine": types.ModuleType("tools.engine"),
        module.__name__: module,
    }
    saved = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    config = AttrDict(Global=AttrDict(epoch_num=20), list=[AttrDict(x=1)])
    content = {
        "state_dict": {"w": torch.ones(2)},
        "config": config,
        "metrics": {"acc": np.float64(0.25), "n": np.int64(4)},
    }
    try:
        torch.save(content, tmp_path / "new.pth")
        torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    finally:
        for name, value in saved.items():
            sys.modules.pop(name) if value is None else sys.modules.__setitem__(name, value)
    for name in ("new.pth", "old.pth"):
        back = read_checkpoint(tmp_path / name)
        assert back["config"] == {"Global": {"epoch_num": 20}, "list": [{"x": 1}]}
        assert type(back["config"]) is dict and type(back["config"]["Global"]) is dict
        assert back["metrics"] == {"acc": 0.25, "n": 4} and torch.equal(back["state_dict"]["w"], torch.ones(2))


class _Evil:
    def __reduce__(self):
        return os.mkdir, (_Evil.target,)


class EvilDict(dict):
    def __reduce__(self):
        return os.mkdir, (_Evil.target,)


@pytest.mark.parametrize("thing", [_Evil, EvilDict])
def test_t20_nothing_in_a_file_is_run(tmp_path, thing):
    _Evil.target = str(tmp_path / "made")
    torch.save({"state_dict": {"w": torch.ones(1)}, "config": thing()}, tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(thing()))
    for name in ("evil.pth", "bare.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("text.pth", b"hello world", "not a file of torch.save"),
        ("notes.md", b"# Title", "not a file of torch.save"),
        ("empty.pth", b"", "the file is empty"),
        ("cut.pth", None, "its end is missing"),
    ],
)
def test_why_a_file_cannot_be_read(tmp_path, name, data, reason):
    save_checkpoint({"state_dict": {"w": torch.zeros(1000)}}, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if data is None else data)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / name)
    assert f"cannot be read ({reason}). It is incomplete, or no checkpoint" in str(error.value)


def test_a_directory_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a directory\. Expected a checkpoint file, such as best\.pth in it"):
        read_checkpoint(tmp_path)


def test_files_that_are_no_checkpoints(tmp_path):
    save_checkpoint({"state_dict": {"w": torch.zeros(1000)}}, tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "x.safetensors").write_bytes(b"12345678 no")
    torch.save({"epoch": 1}, tmp_path / "weightless.pth")
    torch.save([1], tmp_path / "list.pth")
    for name in ("cut.pth", "text.pth", "empty.pth", "x.safetensors", "weightless.pth", "list.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"missing.pth.*not found"):
        read_checkpoint(tmp_path / "missing.pth")


def test_bare_state_dicts_and_safetensors(tmp_path):
    from safetensors.torch import save_file

    model = Reader()
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    save_file(model.state_dict(), str(tmp_path / "x.safetensors"))
    for name in ("bare.pth", "x.safetensors"):
        report = load_weights(Reader(), read_checkpoint(tmp_path / name)["state_dict"])
        assert report.complete and len(report.loaded) == 4


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_t23_first_stage_head_goes_into_the_ctc_branch_and_back(prefix):
    first, second, deployed = Reader(), Reader("gtc"), Reader()
    theirs = {prefix + k: v for k, v in first.state_dict().items()}
    report = load_weights(second, theirs)
    assert torch.equal(second.decoder.ctc_decoder.fc.weight, first.decoder.fc.weight)
    assert report.missing == ["decoder.gtc_decoder.weight", "decoder.gtc_decoder.bias"] and len(report.mapped) == 2
    report = load_weights(deployed, second.state_dict())
    assert torch.equal(deployed.decoder.fc.weight, first.decoder.fc.weight)
    assert report.left_over == ["decoder.gtc_decoder.weight", "decoder.gtc_decoder.bias"] and not report.missing


def test_t23_another_dictionary_starts_its_head_anew():
    source, model = Reader(classes=5), Reader(classes=9)
    before = model.decoder.fc.weight.clone()
    report = load_weights(model, source.state_dict())
    assert torch.equal(model.encoder.weight, source.encoder.weight) and torch.equal(model.decoder.fc.weight, before)
    assert report.reshaped[0] == ("decoder.fc.weight", (5, 4), (9, 4))
    text = "\n".join(report.lines())
    assert "2 of the model's 4 tensors loaded" in text and "decoder.fc.weight [5, 4] in the file, [9, 4] here" in text


def test_a_table_of_another_model_stays_short():
    report = LoadReport(reshaped=[(f"blocks.{i}.weight", (1,), (2,)) for i in range(200)])
    assert len(report.lines()) == 10 and report.lines()[-1].endswith("192 more")


def test_fixed_kernels_of_damamba_are_dropped():
    theirs = {**Reader().state_dict(), "encoder.pos_embed.conv_constant": torch.ones(1)}
    model = Reader()
    report = load_weights(model, theirs)
    assert report.dropped == ["encoder.pos_embed.conv_constant"] and report.complete
    load_exactly(model, theirs, "x")


def test_weights_of_something_else_are_refused():
    with pytest.raises(CheckpointError, match=r"none of its 2 tensors fits"):
        load_weights(Reader(), nn.Linear(2, 2).state_dict(), "x.pth")
    with pytest.raises(CheckpointError, match=r"(?s)belongs to another model.*other shape: decoder.fc.weight"):
        load_exactly(Reader(classes=9), Reader().state_dict(), "x.pth")
    with pytest.raises(CheckpointError, match=r"(?s)missing in the file: decoder.gtc_decoder.*pretrained_model"):
        load_exactly(Reader("gtc"), Reader().state_dict(), "x.pth")
