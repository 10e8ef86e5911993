"""Loading configs: YAML rules, bases, overrides, aliases, defaults, characters, saving."""

import argparse
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from openrec import config_schema as schema
from openrec.config import add_arguments, load_config, parse_args, resolve_charset, save_config
from openrec.config_check import check_config
from openrec.config_kinds import fits
from openrec.config_yaml import dump, parse
from openrec.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
ENGLISH = "./tools/utils/EN_symbol_dict.txt"


@pytest.fixture
def write(tmp_path):
    def _write(text, name="a.yml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return str(path)

    return _write


def value(text):
    return parse(text, "test").value


# ---- YAML -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("-2e+3", -2e3), ("1.", 1.0), (".5", 0.5), ("3.0e-05", 3e-5), ("1.5e3", 1500.0),
        ("-.inf", float("-inf")), ("3", 3), ("-7", -7), ("0x1F", 31), ("1_000", 1000), ("1:30", "1:30"), ("e5", "e5"),
        ("2024-01-01", "2024-01-01"), ("'1e-4'", "1e-4"), ("True", True), ("off", False), ("~", None), ("", None),
        ("1e", "1e"), ("./1e-4", "./1e-4"), ("1.2.3", "1.2.3"), (".", "."), ("-", [None]),
    ],
)  # fmt: skip
def test_plain_values(text, expected):
    got = value(text)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    "data",
    [1e-4, "1e-4", "1e5", 1e-05, 100000000000, "2024-01-01", "yes", None, "", " ", "ㄱ", [1, [2.5, {"a": None}]]],
)
def test_dump_and_parse_are_inverse(data):
    assert value(dump({"k": data})) == {"k": data}


def test_repeated_key_is_refused_with_both_lines(write):
    path = write("Global:\n  a: 1\n  b: 2\n  a: 3\n")
    with pytest.raises(ConfigError, match=r'line 4: the key "a" stands twice.*line 2'):
        load_config(path)


def test_merge_key_is_not_a_repetition():
    assert value("d: &d {a: 1, b: 2}\ne: {<<: *d, b: 3}\nf: *d\ng: {<<: *d}\nh: &h {<<: *d, a: 5}\ni: *h") == {
        "d": {"a": 1, "b": 2}, "e": {"a": 1, "b": 3}, "f": {"a": 1, "b": 2}, "g": {"a": 1, "b": 2},
        "h": {"a": 5, "b": 2}, "i": {"a": 5, "b": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: !!python/name:os.system",
        "a: !thing {b: 1}",
        "a: &x [*x]",
        "a: [1, 2",
        "a: 1\n--- \nb: 2",
        "a: *nowhere",
        "? [1, 2]\n: 3",
        "a: \x07",
    ],
)
def test_unsafe_or_broken_yaml_is_a_config_error(write, text):
    with pytest.raises(ConfigError):
        load_config(write(text))


def test_alias_bomb_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(ConfigError, match="more than"):
        parse("\n".join(lines), "bomb")


# ---- files and bases --------------------------------------------------------------------------------


def test_missing_file_wrong_extension_and_odd_content(write, tmp_path):
    with pytest.raises(ConfigError, match=r"not found.*In that directory: a\.yml"):
        write("Global: {}")
        load_config(tmp_path / "b.yml")
    with pytest.raises(ConfigError, match=r"\.yml or \.yaml"):
        load_config(write("a: 1", "a.json"))
    with pytest.raises(ConfigError, match="empty"):
        load_config(write(""))
    with pytest.raises(ConfigError, match="list"):
        load_config(write("- 1"))
    (tmp_path / "c.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(tmp_path / "c.yml")


def test_bases_merge_in_order_and_relative_to_their_file(write):
    write("A: {x: 1, y: [1, 2], z: {p: 1}}", "base/deep/one.yml")
    write("_BASE_: [deep/one.yml]\nA: {x: 2, z: {q: 2}}", "base/two.yml")
    write("A: {x: 3}\nB: {n: 1}", "base/three.yml")
    config = load_config(write("_BASE_: [base/two.yml, base/three.yml]\nA: {y: [3]}\nB: null"))
    assert config["A"] == {"x": 3, "y": [3], "z": {"p": 1, "q": 2}} and config["B"] is None
    assert type(config) is dict and "_BASE_" not in config and config["filename"] == "a"


def test_base_may_be_a_single_path_also_in_the_home_directory(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("A: {x: 1}", "home.yml")
    assert load_config(write("_BASE_: ~/home.yml\nA: {y: 2}"))["A"] == {"x": 1, "y": 2}


def test_dotted_key_in_a_file_is_a_path_when_its_start_exists(write):
    write("A: {b: {c: 1, d: 2}}", "base.yml")
    config = load_config(write("_BASE_: base.yml\nA.b.c: 5\nX.y: 6"))
    assert config["A"] == {"b": {"c": 5, "d": 2}} and config["X.y"] == 6


def test_circle_of_bases_and_missing_base_are_refused(write):
    write("_BASE_: b.yml", "a.yml")
    path = write("_BASE_: [a.yml]", "b.yml")
    with pytest.raises(ConfigError, match="circle"):
        load_config(path)
    with pytest.raises(ConfigError, match=r'nothing\.yml" not found'):
        load_config(write("_BASE_: nothing.yml"))
    with pytest.raises(ConfigError, match="a path or a list of paths"):
        load_config(write("_BASE_: {a: 1}"))


# ---- overrides --------------------------------------------------------------------------------------

BASIC = """
    Global: {epoch_num: 3, save_epoch_step: [0, 1]}
    Train:
      dataset:
        transforms:
          - DecodeImagePIL: {img_mode: RGB}
          - PARSeqAugPIL:
          - KeepKeys: {keep_keys: [image]}
      loader: {num_workers: 0}
    Eval:
"""


def test_all_overrides_hold(write):
    words = [
        "Train.loader.num_workers=1", "Train.loader.batch_size_per_card=2", "Global.pretrained_model=", "New=[1, 2]",
        "Train.dataset.transforms.0.DecodeImagePIL.img_mode=BGR", "Train.dataset.transforms.KeepKeys.keep_keys.0=x=y",
        "Train.dataset.transforms.PARSeqAugPIL.strength=1e-1", "Train.dataset.transforms.-1.KeepKeys.more=true",
        "Global.save_epoch_step.1=4", "Eval.loader.num_workers=2", "Eval.loader.drop_last='a'", "Global.epochs=5",
        "Train.sampler={name: RatioSampler, first_bs: 4}", "Train.sampler.first_bs=8",
    ]  # fmt: skip
    config = load_config(write(BASIC), words)
    train = config["Train"]
    assert train["loader"] == {"num_workers": 1, "batch_size_per_card": 2}
    assert config["Eval"] == {"loader": {"num_workers": 2, "drop_last": "a"}}
    assert [next(iter(op.values())) for op in train["dataset"]["transforms"]] == [
        {"img_mode": "BGR"}, {"strength": 0.1}, {"keep_keys": ["x=y"], "more": True},
    ]  # fmt: skip
    assert config["New"] == [1, 2] and config["Global"]["save_epoch_step"] == [0, 4]
    assert config["Global"]["epoch_num"] == 5 and "epochs" not in config["Global"]
    assert config["Global"]["pretrained_model"] is None
    assert train["sampler"] == {"name": "RatioSampler", "first_bs": 8}
    ops = load_config(write(BASIC), ["Train.dataset.transforms.0={DecodeImage: {img_mode: BGR}}"])["Train"]["dataset"]
    assert ops["transforms"][0] == {"DecodeImage": {"img_mode": "BGR"}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Global"], "expected KEY=VALUE"),
        (["=3"], "expected KEY=VALUE"),
        (["Global..x=3"], "expected KEY=VALUE"),
        (["Train=1", "Train.loader=2"], "contradict"),
        (["Train.loader.num_workers=2", "Train.loader=3"], "contradict"),
        (["Global.epoch_num.x=3"], "which has no keys"),
        (["Train.dataset.transforms.7.KeepKeys.x=1"], "3 elements"),
        (["Train.dataset.transforms.KeepKey.x=1"], 'Did you mean "KeepKeys"'),
        (["Global.x=[1"], "not readable as YAML"),
        (["Global.x=!!python/name:os.system"], "python/name"),
    ],
)
def test_overrides_that_cannot_hold(write, words, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(BASIC), words)


def test_keys_with_dots_can_be_overridden(write):
    path = write("Global: {}\nOptimizer: {lr_mult: {da_scan.offset: 1.0}}")
    config = load_config(path, ["Optimizer.lr_mult.da_scan.offset=0.5", "Optimizer.lr_mult={stn.x: 0.1}"])
    assert config["Optimizer"]["lr_mult"] == {"da_scan.offset": 0.5, "stn.x": 0.1}


ANCHORED = """
    Global: {max_text_length: &len 25, other: *len}
    Train: {sampler: {first_bs: &bs 8}, loader: {n: *bs},
            ops: [{A: {max_text_length: *len}}, {B: *len}], all: &all {x: 1}}
    Eval: {sampler: {first_bs: *bs}, ops: [{A: {max_text_length: *len}}], all: *all}
"""


def test_override_of_an_anchored_value_reaches_its_aliases(write):
    config = load_config(write(ANCHORED), ["Global.max_text_length=40", "Train.sampler.first_bs=2", "Train.all.x=5"])
    assert config["Global"]["other"] == 40 and config["Train"]["ops"] == [{"A": {"max_text_length": 40}}, {"B": 40}]
    assert config["Eval"]["ops"] == [{"A": {"max_text_length": 40}}]
    assert config["Train"]["loader"]["n"] == 2 and config["Eval"]["sampler"]["first_bs"] == 2
    assert config["Eval"]["all"] == {"x": 5} and config["Eval"]["all"] is not config["Train"]["all"]


def test_override_of_an_alias_stays_there_and_wins(write):
    words = ["Eval.sampler.first_bs=3", "Global.max_text_length=40", "Eval.ops.0.A.max_text_length=9"]
    config = load_config(write(ANCHORED), words)
    assert config["Train"]["sampler"]["first_bs"] == 8 and config["Eval"]["sampler"]["first_bs"] == 3
    assert config["Eval"]["ops"] == [{"A": {"max_text_length": 9}}]
    assert config["Train"]["ops"][0] == {"A": {"max_text_length": 40}}


def test_aliases_are_remembered_through_bases(write):
    write(ANCHORED, "base.yml")
    path = write("_BASE_: base.yml\nEval: {ops: [{A: {max_text_length: 7}}]}", "child.yml")
    config = load_config(path, ["Global.max_text_length=40"])
    assert config["Train"]["ops"][1] == {"B": 40} and config["Eval"]["ops"] == [{"A": {"max_text_length": 7}}]


def test_command_line_spellings():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for flag in ("-c", "--c", "--config"):
        for option in ("-o", "--o", "--opt"):
            args = parser.parse_args([flag, "x.yml", option, "A=1", "B=2", "--local-rank=3", option, "C=-1"])
            assert args.config == "x.yml" and args.opt == ["A=1", "B=2", "C=-1"]
    assert parse_args("tool", ["-c", "x.yml"]).opt == []
    with pytest.raises(SystemExit):
        parse_args("tool", [])


# ---- Global -----------------------------------------------------------------------------------------


def test_defaults_are_filled_in_and_epochs_is_epoch_num(write):
    section = load_config(write("Global: {epochs: 4, seed: 1e3}"))["Global"]
    known = {k for k, key in schema.GLOBAL.items() if not key.ignored}
    assert set(section) == known and section["epoch_num"] == 4 and section["use_tensorboard"] is False
    assert section["seed"] == 1000 and isinstance(section["seed"], int)
    assert load_config(write("Global: {epochs: 4}"), ["Global.epoch_num=9"])["Global"]["epoch_num"] == 9
    with pytest.raises(ConfigError, match="two names of one key"):
        load_config(write("Global: {epochs: 4, epoch_num: 5}"))


def test_every_global_default_fits_its_own_kind():
    for table in (schema.GLOBAL, schema.LOADER, schema.OPTIMIZER_EXTRA, schema.ARCHITECTURE, schema.EXPORT):
        for name, key in table.items():
            assert key.default is schema.REQUIRED or schema.KINDS[key.kind][0](key.default) or key.default is None, name


def test_every_global_key_is_read_somewhere():
    root = Path(__file__).resolve().parents[1]
    files = [p for p in (root / "openrec").rglob("*.py") if p.name != "config_schema.py"]
    source = "\n".join(p.read_text(encoding="utf-8") for p in files)
    inference = {"infer_img", "export_dir", "backend", "onnx_model_path"}  # of the inference and export tools
    unread = {k for k, key in schema.GLOBAL.items() if not key.ignored and f'"{k}"' not in source}
    assert unread <= inference


def test_saved_config_loads_to_the_same(write, tmp_path):
    config = load_config(write(BASIC), ["Optimizer.lr=1e-4", "Global.run=01", "Global.text='1e-4'"])
    save_config(config, tmp_path / "out" / "config.yml")
    text = (tmp_path / "out" / "config.yml").read_text(encoding="utf-8")
    again = load_config(tmp_path / "out" / "config.yml")
    assert {k: v for k, v in again.items() if k not in ("config", "filename")} == {
        k: v for k, v in config.items() if k not in ("config", "filename")
    }
    assert text.index("Global:") < text.index("Train:") and "&id" not in text and "{}" not in text
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["config.yml"]


# ---- characters -------------------------------------------------------------------------------------

TEXT = """
    Global: {{epoch_num: 1, {top}}}
    Train: {{dataset: {{transforms: [{{CTCLabelEncode: {{{op}}}}}]}}}}
    PostProcess: {{name: CTCLabelDecode, {post}}}
"""


def charset_of(write, top="", op="", post="", words=()):
    config = load_config(write(TEXT.format(top=top, op=op, post=post)), words)
    return resolve_charset(config), config


def test_one_charset(write):
    assert len(charset_of(write)[0]) == 36
    assert len(charset_of(write, "character_dict_path: ''")[0]) == 36
    assert len(charset_of(write, "character_dict_path: null, use_space_char: True")[0]) == 37
    charset, _ = charset_of(write, f"character_dict_path: {ENGLISH}", f"character_dict_path: {ENGLISH[2:]}")
    assert len(charset) == 94 and charset.source == ENGLISH
    # T32: an absent use_space_char means no space everywhere; agreeing local values stand in for Global
    assert len(charset_of(write, f"character_dict_path: {ENGLISH}", "use_space_char: False")[0]) == 94
    assert len(charset_of(write, "", f"character_dict_path: {ENGLISH}", f"character_dict_path: {ENGLISH}")[0]) == 94


@pytest.mark.parametrize(
    ("top", "op", "post", "places"),
    [
        (
            f"character_dict_path: {ENGLISH}",
            "character_dict_path: other.txt",
            "",
            ["CTCLabelEncode.character_dict_path"],
        ),
        ("use_space_char: False", "", "use_space_char: True", ["PostProcess.use_space_char", "Global.use_space_char"]),
        ("", "use_space_char: True", "use_space_char: False", ["transforms.0.CTCLabelEncode.use_space_char"]),
    ],
)
def test_contradicting_characters_are_refused(write, top, op, post, places):
    with pytest.raises(ConfigError) as error:
        charset_of(write, top, op, post)
    assert all(place in str(error.value) for place in places) and "Remove" in str(error.value)


def test_characters_given_on_the_command_line_win(write, caplog):
    top, op = "character_dict_path: other.txt", "character_dict_path: another.txt"
    charset, config = charset_of(write, top, op, words=[f"Global.character_dict_path={ENGLISH}"])
    assert len(charset) == 94 and "another.txt" in caplog.text
    assert config["Train"]["dataset"]["transforms"][0]["CTCLabelEncode"]["character_dict_path"] == ENGLISH
    with pytest.raises(ConfigError, match="one set of characters"):
        words = [f"Global.character_dict_path={ENGLISH}", "PostProcess.character_dict_path=third.txt"]
        charset_of(write, top, op, words=words)


def test_missing_dictionary_says_where_to_get_it(write, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)ppocr_keys_v1\.txt.*PaddleOCR/blob/main"):
        charset_of(write, "character_dict_path: ./nowhere/ppocr_keys_v1.txt")
    with pytest.raises(ConfigError, match="one character a line"):
        charset_of(write, "character_dict_path: mine.txt")
    monkeypatch.chdir(tmp_path)  # the shipped dictionary is found from any directory
    assert len(charset_of(write, f"character_dict_path: {ENGLISH}")[0]) == 94


# ---- checks that need no other room -----------------------------------------------------------------


def test_check_lists_all_problems_of_the_fixed_tables(write):
    path = write("""
        Global: {epoch_nums: 3, use_amp: 'True', save_epoch_step: 3, device: tpu, pretrained_model: no/such.pth}
        Arch: {}
        Optimizer: {name: AdamW, lr: '1e-4', beta: [0.9, 0.99]}
        Train: {loader: {num_worker: 3, drop_last: 3}, datasets: {}}
        Eval: 5
    """)
    with pytest.raises(ConfigError) as error:
        check_config(load_config(path), "train")
    text = str(error.value)
    for part in (
        'Global.epoch_nums: no such key. Did you mean "epoch_num"?', "Global.epoch_num: missing",
        "Global.use_amp: expected",
        "Global.save_epoch_step: expected a list of two", "Global.device: expected gpu, cpu or mps, got 'tpu'",
        'Global.pretrained_model: "no/such.pth" not found', "Arch: no such section", "Architecture: missing",
        "Loss: missing", "LRScheduler: missing", "PostProcess: missing", "Metric: missing", "Eval: expected a mapping",
        "Optimizer.lr: expected a number, got '1e-4' (a text; write the number without quotes)",
        'Optimizer.beta: AdamW has no such key. Did you mean "betas"?', 'Did you mean "num_workers"?',
        "Train.loader.drop_last: expected true or false, got 3", 'Train.datasets: no such key. Did you mean "dataset"?',
        "Train.dataset: missing",
    ):  # fmt: skip
        assert part in text, part


def test_optimizer_names_are_those_of_torch(write):
    with pytest.raises(ConfigError, match=r'torch\.optim has no "AdamWW". Did you mean "AdamW"'):
        check_config(load_config(write("Global: {epoch_num: 1}\nOptimizer: {name: AdamWW, lr: 1e-4}")))


@pytest.mark.parametrize(
    ("item", "hint", "good"),
    [
        (3, float, True), ("3", float, False), (True, int, False), (3.0, int, True), (3.5, int, False),
        (1, bool, False), (None, int | None, True), ([1, 2], list[int], True), ([1, "2"], list[int], False),
        ("ab", list[str], False),
        ([[1, 2]], list[list[int]] | None, True), ([32, 128], tuple[int, int], True), ({}, dict, True),
        (3, dict, False),
        (3, "unknown", True),
    ],
)  # fmt: skip
def test_kinds_follow_annotations(item, hint, good):
    assert fits(item, hint) is good


def test_tools_end_with_one_message_and_a_status():
    code = textwrap.dedent("""
        from openrec.cli import run_tool
        from openrec.errors import ConfigError
        def main():
            raise {}
        run_tool(main)
    """)
    for error, status, text in (
        ("ConfigError('expected x')", 1, "expected x"),
        ("KeyboardInterrupt", 130, "interrupted"),
    ):
        done = subprocess.run([sys.executable, "-c", code.format(error)], capture_output=True, text=True)
        assert done.returncode == status and text in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "-c", code.format("ZeroDivisionError")], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("Global.max_text_length=0", "Global.max_text_length: expected a whole number, at least 1, got 0."),
        ("Global.epoch_num=0", "Global.epoch_num: expected a whole number, at least 1, got 0."),
        ("Global.grad_clip_val=-1", "Global.grad_clip_val: expected a number, at least 0, got -1."),
        ("Optimizer.lr=-0.1", "Optimizer.lr: expected a positive number, got -0.1."),
        ("Optimizer.weight_decay=-1", "Optimizer.weight_decay: expected a number, at least 0, got -1."),
        ("Train.loader.num_workers=-1", "Train.loader.num_workers: expected a whole number, at least 0, got -1."),
        ("Train.loader.batch_size_per_card=0", "batch_size_per_card: expected a whole number, at least 1, got 0."),
        ("Architecture.Encoder.drop_path_rate=1.5", "expected a probability, at least 0 and below 1, got 1.5."),
        ("Architecture.Encoder.head_dim=0", "head_dim: expected a whole number of at least 1, got 0."),
        ("Global.seed=-1", "Global.seed: expected a whole number, at least 0, got -1."),
        ("Global.ema_decay=2", "Global.ema_decay: expected a number, at least 0 and below 1, got 2."),
        ("Train.loader.start_method=frok", "expected fork, spawn, forkserver or null, got 'frok'."),
        ("Architecture.in_channels=1", "in_channels is 1, but the pictures of Train have 3. Leave it out."),
        ("LRScheduler.name=StepLR", "Known: gamma, name, step_size, warmup_epoch, warmup_in_steps."),
        ("Architecture.Decoder.name=HardAttnDecoder", "CTCLoss does not go with HardAttnDecoder; use HardAttnLoss."),
        ("Architecture.Decoder.name=NRTRDecoder", "Loss.name: CTCLoss does not go with NRTRDecoder; use ARLoss"),
        ("PostProcess.name=ARLabelDecode", "ARLabelDecode does not go with RCTCDecoder; use CTCLabelDecode."),
        ("Train.dataset.transforms.1={ARLabelEncode: }", "transforms.1: ARLabelEncode does not go with RCTCDecoder"),
        ("Eval.dataset.transforms.1={ARLabelEncode: }", "Eval.dataset.transforms.1: ARLabelEncode does not go with"),
        (
            "Train.dataset.transforms.KeepKeys.keep_keys=[image]",
            "must begin with [image, label, length], got ['image']",
        ),
        ("Train.dataset.name=SimpleDataSet", "Known: data_dir, delimiter, label_file_list, name, ratio_list, seed, t"),
        (
            f"Global.pretrained_model={ROOT / 'configs'}",
            'configs" is a directory; expected a checkpoint file, no .pth is in it.',
        ),
    ],
)
def test_numbers_and_parts_that_cannot_work_are_named_before_any_data_is_read(word, message):
    config = load_config(ROOT / "configs/rec/svtrv2/svtrv2_mamba_tiny.yml", [word])
    with pytest.raises(ConfigError) as error:
        check_config(config)
    assert message in str(error.value)


def test_a_misspelt_path_names_the_nearest(write, tmp_path):
    (tmp_path / "best.pth").write_bytes(b"")
    write("a: 1", "tiny.yml")
    with pytest.raises(ConfigError, match=r'Did you mean "tiny\.yml"'):
        load_config(tmp_path / "tny.yml")
    config = load_config(
        ROOT / "configs/rec/svtrv2/svtrv2_mamba_tiny.yml", [f"Global.pretrained_model={tmp_path / 'bset.pth'}"]
    )
    with pytest.raises(ConfigError, match=r'bset\.pth" not found .*Did you mean "best\.pth"'):
        check_config(config)
