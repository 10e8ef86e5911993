"""A run writes what it promises, steps as it should and refuses what cannot go on."""

import copy
import errno
import logging
import os
import re
import signal

import engine_case
import pytest
import torch
import yaml

from openrec import checkpoint
from openrec.checkpoint import read_checkpoint, save_checkpoint
from openrec.engine import trainer as trainer_module
from openrec.engine.evaluation import evaluate_config
from openrec.engine.trainer import Trainer
from openrec.errors import CheckpointError, ConfigError, DataError, OpenRecError

LINE = re.compile(
    r"\[\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\] openrec INFO: epoch: \[(\d+)/2\], global_step: (\d+), lr: \d+\.\d{6}, "
    r"(?:acc: \d\.\d{6}, norm_edit_dis: \d\.\d{6}, num_samples: \d+\.\d{6}, )?loss: \d+\.\d{6}, "
    r"avg_reader_cost: [\d.]+ s, avg_batch_cost: [\d.]+ s, avg_samples: [\d.]+, ips: [\d.]+ samples/s, "
    r"eta: \d+:\d\d:\d\d"
)


def run(folder, changes=(), **data):
    trainer = Trainer(engine_case.config(folder, changes, **data))
    return trainer, trainer.train()


def weights(path):
    return read_checkpoint(path)["state_dict"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_files_and_lines_of_a_run(tmp_path):
    changes = {
        "Global.cal_metric_during_train": True, "Global.use_amp": True, "Global.use_tensorboard": True,
        "Global.save_iter_step": [2, 4], "Global.save_epoch_step": [1, 1], "Global.print_batch_step": 4,
        "Global.grad_clip_val": 5.0,
    }  # fmt: skip
    _, best = run(tmp_path, changes, bad=(3,))
    out = tmp_path / "out"
    pytest.importorskip("tensorboard")
    names = {p.name for p in out.iterdir() if not p.name.startswith("events")}
    assert names == {
        "best.pth", "config.yml", "epoch_2.pth", "iter_0_4.pth", "iter_6_8.pth", "iter_6_12.pth", "latest.pth",
        "log.jsonl", "skipped.tsv", "train.log",
    }  # fmt: skip
    text = (out / "train.log").read_text()
    assert [m.groups() for m in LINE.finditer(text)] == [("1", "4"), ("1", "6"), ("2", "8"), ("2", "12")]
    for wanted in (
        "----------- Config -----------", "train dataloader has 6 iters", "valid dataloader has 2 iters",
        "{'Total': 49873, 'Trainable': 49873}", "train from scratch", "run with torch", "cur metric, acc: ",
        "save ckpt to ", "best metric, acc: ", "best_epoch: ", "1 x image cannot be decoded: ", "image-000000003",
        "dictionary: 0-9 and a-z", "differs from OpenOCR: bf16", "under OpenOCR's rule, acc: ",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert yaml.safe_load((out / "config.yml").read_text())["Global"]["epoch_num"] == 2
    trained, scored = engine_case.rows(out, "train"), engine_case.rows(out, "eval")
    assert [r["step"] for r in trained] == [4, 6, 8, 12] and {"lr", "loss", "ips", "time", "acc"} <= trained[0].keys()
    assert [r["step"] for r in scored] == [6, 12] and scored[0]["num_samples"] == 9 and best["num_samples"] == 9
    latest = torch.load(out / "latest.pth", weights_only=True)
    assert (latest["epoch"], latest["global_step"]) == (2, 12)
    assert latest["config"]["Architecture"]["Decoder"]["out_channels"] == 37 and latest["metrics"]["best_epoch"]
    assert len(latest["charset"]["characters"]) == 36 and not any(k.startswith("module.") for k in latest["state_dict"])
    slim = torch.load(out / "best.pth", weights_only=True)
    assert slim["optimizer"] is None and slim["scheduler"] is None


def test_same_run_twice_and_a_finished_run_says_so(tmp_path, caplog):
    for name in ("a", "b"):
        run(tmp_path, {"Global.output_dir": str(tmp_path / name)})
    one, other = (weights(tmp_path / name / "latest.pth") for name in "ab")
    assert equal(one, other)
    with caplog.at_level(logging.INFO, "openrec"):
        _, best = run(tmp_path, {"Global.output_dir": str(tmp_path / "a")})
    assert "this run is finished: epoch 2 of 2" in caplog.text and best["best_epoch"]


def test_more_epochs_continue_with_the_longer_schedule(tmp_path):
    run(tmp_path)
    trainer, _ = run(tmp_path, {"Global.epoch_num": 3})
    assert trainer.parts.progress.step == 18 and trainer.parts.schedule.total_steps == 18
    steps = [r["step"] for r in engine_case.rows(tmp_path / "out", "train")]
    assert steps == list(range(1, 19))


def test_max_steps_stops_saves_and_continues(tmp_path):
    run(tmp_path, {"Global.max_steps": 3, "Global.save_latest_step": 0})
    state = read_checkpoint(tmp_path / "out" / "latest.pth")
    assert state["global_step"] == 3 and state["progress"]["batch"] == 3 and not state["progress"]["epoch_done"]
    run(tmp_path)
    run(tmp_path, {"Global.output_dir": str(tmp_path / "straight")})
    assert equal(weights(tmp_path / "out/latest.pth"), weights(tmp_path / "straight/latest.pth"))


def test_stopped_by_sigterm_saves_and_continues_exactly(tmp_path, monkeypatch):
    real = trainer_module.TrainStep.__call__

    def step(self, batches, number, first):
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches, number, first)

    monkeypatch.setattr(trainer_module.TrainStep, "__call__", step)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, {"Global.save_latest_step": 0})
    monkeypatch.undo()
    assert stopped.value.code == 143 and read_checkpoint(tmp_path / "out/latest.pth")["global_step"] == 5
    run(tmp_path)
    run(tmp_path, {"Global.output_dir": str(tmp_path / "straight")})
    assert equal(weights(tmp_path / "out/latest.pth"), weights(tmp_path / "straight/latest.pth"))


def test_average_of_the_weights_is_saved_and_evaluated(tmp_path):
    changes = {"Global.use_ema": True, "Global.ema_decay": 0.5, "Global.epoch_num": 1}
    _, best = run(tmp_path, changes)
    latest = read_checkpoint(tmp_path / "out/latest.pth")
    average = latest["ema"]["state_dict"]
    assert latest["ema"]["updates"] == 6 and not equal(average, latest["state_dict"])
    assert equal(weights(tmp_path / "out/best.pth"), average)
    for name in ("latest.pth", "best.pth"):
        metrics = evaluate_config(
            engine_case.config(tmp_path, {"Global.pretrained_model": str(tmp_path / "out" / name)})
        )
        assert metrics["acc"] == best["acc"] and metrics["norm_edit_dis"] == best["norm_edit_dis"]


def test_evaluation_tool_prints_both_sets_of_numbers(tmp_path, caplog):
    run(tmp_path, {"Global.epoch_num": 1})
    with caplog.at_level(logging.INFO, "openrec"):
        evaluate_config(engine_case.config(tmp_path))  # best.pth of output_dir
    text = caplog.text
    assert text.index("metric in ckpt ***************") < text.index("metric eval ***************")
    assert re.search(r"acc:0\.\d+", text) and re.search(r"fps:\d", text)
    with pytest.raises(ConfigError, match=r"Global.pretrained_model: .*nothere.pth"):
        evaluate_config(engine_case.config(tmp_path, {"Global.pretrained_model": "nothere.pth"}))
    with pytest.raises(CheckpointError, match="no checkpoint to evaluate"):
        evaluate_config(engine_case.config(tmp_path, {"Global.output_dir": str(tmp_path / "none")}))


def test_another_model_in_latest_is_refused_with_choices(tmp_path):
    run(tmp_path, {"Global.epoch_num": 1})
    wider = {"Architecture.Encoder.depths": [1, 2, 1], "Architecture.Encoder.mixer": [["Conv"], ["Conv"] * 2, ["Conv"]]}
    with pytest.raises(CheckpointError, match=r"(?s)another architecture.*Encoder.depths.*Global.auto_resume: False"):
        run(tmp_path, wider)
    words = tmp_path / "dict.txt"
    words.write_text("\n".join("0123456789"))
    with pytest.raises(CheckpointError, match=r"another dictionary \(36 characters.*now 10"):
        run(tmp_path, {"Global.character_dict_path": str(words)})
    with pytest.raises(CheckpointError, match=r"(?s)its optimizer does not fit.*filter_bias_and_bn"):
        run(tmp_path, {"Optimizer.filter_bias_and_bn": False, "Global.epoch_num": 3})
    # anew, on request: the log of the earlier run is put aside
    run(tmp_path, {**wider, "Global.auto_resume": False, "Global.epoch_num": 1})
    assert (tmp_path / "out/log.1.jsonl").exists()
    assert [r["step"] for r in engine_case.rows(tmp_path / "out", "train")] == [1, 2, 3, 4, 5, 6]


def test_t12_best_without_optimizer_and_openocr_files_can_be_continued(tmp_path, caplog):
    run(tmp_path, {"Global.epoch_num": 1})
    best = tmp_path / "out/best.pth"
    trainer, _ = run(tmp_path, {"Global.checkpoints": str(best), "Global.output_dir": str(tmp_path / "second")})
    assert "holds no optimizer" in caplog.text and trainer.parts.progress.step == 12
    state = read_checkpoint(tmp_path / "out/latest.pth")
    keys = ("epoch", "global_step", "state_dict", "optimizer", "scheduler", "config", "metrics")
    save_checkpoint({k: state[k] for k in keys}, tmp_path / "theirs.pth")
    changes = {"Global.checkpoints": str(tmp_path / "theirs.pth"), "Global.output_dir": str(tmp_path / "third")}
    trainer, _ = run(tmp_path, changes)
    assert [r["step"] for r in engine_case.rows(tmp_path / "third", "train")] == [7, 8, 9, 10, 11, 12]


def test_pretrained_model_with_another_dictionary(tmp_path, caplog):
    run(tmp_path, {"Global.epoch_num": 1})
    words = tmp_path / "dict.txt"
    words.write_text("\n".join("0123456789"))
    changes = {
        "Global.character_dict_path": str(words), "Global.pretrained_model": str(tmp_path / "out/best.pth"),
        "Global.output_dir": str(tmp_path / "second"), "Global.epoch_num": 1,
    }  # fmt: skip
    with caplog.at_level(logging.INFO, "openrec"):
        run(tmp_path, changes)
    assert "another dictionary: 10 of 10 characters keep what" in caplog.text
    assert "re-initialised" not in caplog.text
    assert "finetune from checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match=r"another dictionary \(36 characters"):
        evaluate_config(engine_case.config(tmp_path, {**changes, "Global.auto_resume": False}))


@pytest.mark.parametrize("bad_steps", [{3}, {3, 4}], ids=["once", "twice"])
def test_a_loss_that_is_not_finite(tmp_path, monkeypatch, caplog, bad_steps):
    real = trainer_module.TrainStep._backward

    def backward(self, tensors, weight, last, result):
        if self.step in bad_steps:
            tensors = [tensors[0] * float("nan"), *tensors[1:]]
        return real(self, tensors, weight, last, result)

    monkeypatch.setattr(trainer_module.TrainStep, "_backward", backward)
    if len(bad_steps) == 1:
        trainer, _ = run(tmp_path)
        assert trainer.parts.progress.step == 12 and "the loss is not finite in step 3, batch 2" in caplog.text
    else:
        with pytest.raises(OpenRecError, match=r"second time in a row: step 4, batch 3 .*samples: .*image-0000000"):
            run(tmp_path)
    monkeypatch.undo()
    state = read_checkpoint(tmp_path / "out/latest.pth")
    assert all(torch.isfinite(v).all() for v in state["state_dict"].values())  # BatchNorm's statistics too
    assert state["global_step"] == (12 if len(bad_steps) == 1 else 2)


def test_a_full_disk_while_saving(tmp_path, monkeypatch):
    run(tmp_path, {"Global.max_steps": 2})
    before = (tmp_path / "out/latest.pth").read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"latest.pth.*No space left on device.*unchanged.*free some space"):
        run(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(trainer_module.JsonLines, "write", full)
    with pytest.raises(OpenRecError, match=r"No space left on device while writing.*checkpoints there are whole"):
        run(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "out/latest.pth").read_bytes() == before
    run(tmp_path)
    run(tmp_path, {"Global.output_dir": str(tmp_path / "straight")})
    assert equal(weights(tmp_path / "out/latest.pth"), weights(tmp_path / "straight/latest.pth"))


def test_t51_every_run_has_its_own_log(tmp_path):
    for name in ("a", "b"):
        run(tmp_path, {"Global.output_dir": str(tmp_path / name), "Global.epoch_num": 1})
    assert str(tmp_path / "b") not in (tmp_path / "a/train.log").read_text()
    assert not [h for h in logging.getLogger("openrec").handlers if h.get_name() == "openrec-run"]


def test_t17_t18_an_evaluation_set_that_cannot_be_used_is_an_error(tmp_path):
    with pytest.raises(OpenRecError):
        run(tmp_path, {"Eval.dataset.data_dir": str(tmp_path / "nothere")})


def test_training_data_that_cannot_be_read_end_the_run_after_one_epoch(tmp_path):
    with pytest.raises(DataError, match=r"epoch 1: not one training sample could be used; .*skipped\.tsv"):
        run(tmp_path, bad=range(1, 23))
    assert (tmp_path / "out" / "skipped.tsv").read_text().count("\n") == 22


def test_an_evaluation_that_cannot_work_is_refused_before_the_first_step(tmp_path, monkeypatch):
    def wrong(self, preds, batch=None):
        raise IndexError("too many indices")

    monkeypatch.setattr("openrec.postprocess.ctc_postprocess.CTCLabelDecode.__call__", wrong)
    monkeypatch.setattr(trainer_module.summary, "log_first_sample", lambda *parts: None)
    with pytest.raises(ConfigError, match=r"^Eval: .*\[3, 32, 64\].*IndexError: too many.*Eval\.dataset\.transforms"):
        Trainer(engine_case.config(tmp_path))


def test_the_trial_of_an_evaluation_leaves_no_trace(tmp_path):
    trainer = Trainer(engine_case.config(tmp_path))
    evaluator, before = trainer.evaluator, copy.deepcopy(trainer.model.state_dict())
    evaluator.try_one(trainer.model, trainer_module.summary.first_batch(trainer.eval_loader))
    assert trainer.model.training and evaluator.evaluate(trainer.model)["num_samples"] == 9
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    trainer.close()


def test_an_evaluation_that_fails_later_loses_no_step(tmp_path, monkeypatch):
    def failing(self, model):
        raise DataError("the evaluation's words are gone")

    monkeypatch.setattr(trainer_module.Evaluator, "evaluate", failing)
    with pytest.raises(DataError, match="gone"):
        run(tmp_path)
    monkeypatch.undo()
    step = read_checkpoint(tmp_path / "out" / "latest.pth")["global_step"]
    run(tmp_path)
    steps = [r["step"] for r in engine_case.rows(tmp_path / "out", "train")]
    assert step > 0 and steps == sorted(set(steps))
    assert [r["epoch"] for r in engine_case.rows(tmp_path / "out", "eval")] == [1, 2]


def test_an_unknown_indicator_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match=r'main_indicator: no number is called "accuracy"\. Known: acc, correct, fps'):
        run(tmp_path, {"Metric.main_indicator": "accuracy"})
    assert not (tmp_path / "out" / "latest.pth").exists()


def test_labels_that_are_read_as_another_text_are_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("openrec.config_fit.FAMILIES", {})  # as for a label encoder of the user's own
    config = engine_case.config(tmp_path)
    config["Train"]["dataset"]["transforms"][1] = {"CharDetLabelEncode": {"boxes": "none"}}
    with pytest.raises(ConfigError, match=r"the label '\d+' of .* becomes .*CTCLabelDecode reads as .*belong together"):
        Trainer(config)


def test_another_number_of_classes_than_the_dictionary_has_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "openrec"):
        run(tmp_path, {"Architecture.Decoder.out_channels": 12, "Global.max_steps": 1})
    assert "out_channels is 12, but the dictionary makes 37, which is used." in caplog.text


def test_an_output_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Global.output_dir: .*file/out.*cannot be used"):
        run(tmp_path, {"Global.output_dir": str(tmp_path / "file" / "out")})


def test_gpu_falls_back_to_the_cpu_with_a_line(tmp_path, caplog):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with caplog.at_level(logging.INFO, "openrec"):
        run(tmp_path, {"Global.device": "gpu", "Global.max_steps": 1})
    assert "running on the CPU" in caplog.text
