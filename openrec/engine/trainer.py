"""Training: from a config to checkpoints, logs and a number.

The order of construction, the files and the line formats are those of OpenOCR
(https://github.com/Topdu/OpenOCR, Apache-2.0); exact resume and distributed evaluation are this project's.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import platform
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openrec.checkpoint import remove_leftovers
from openrec.config import check_config, resolve_charset, save_config
from openrec.data import build_loader
from openrec.data.types import Batch
from openrec.engine import summary
from openrec.engine.diagnosis import Diagnosis
from openrec.engine.distributed import (
    World,
    broadcast,
    broadcast_buffers,
    gather,
    gather_numbers,
    launched_rank,
    start_world,
    stop_world,
)
from openrec.engine.ema import Ema
from openrec.engine.evaluator import Evaluator, split_rule
from openrec.engine.limits import TimeLimit, check_fonts, check_machine, use_bf16
from openrec.engine.logger import (
    JsonLines,
    TensorBoard,
    full_disk_told,
    log_config,
    make_directory,
    metric_text,
    show_bar,
    start_logging,
    stop_logging,
)
from openrec.engine.meters import Clock, Medians, training_line
from openrec.engine.progress_bar import Bar
from openrec.engine.rng import preserved_rng, seed_everything
from openrec.engine.signals import noted_signals
from openrec.engine.state import RunParts, due, resume_run, save_run, start_from
from openrec.engine.step import StepResult, TrainStep
from openrec.engine.sync_bn import use_synced_batch_norm
from openrec.errors import ConfigError, DataError
from openrec.losses import build_loss
from openrec.metrics import build_metric
from openrec.modeling import build_model
from openrec.ops.memory import keep_freed_memory
from openrec.optimizer import build_optimizer
from openrec.postprocess import build_post_process
from openrec.registry import nearest

logger = logging.getLogger("openrec")


class Trainer:
    """A training run.

    Args:
        config: what ``load_config`` returned.

    Raises:
        OpenRecError: whatever the user can mend: config, data, checkpoint.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        start_logging(None, is_main=launched_rank() == 0)  # what the check warns of
        check_config(config, "train")
        self.config: dict[str, Any] = copy.deepcopy(dict(config))
        self.options: dict[str, Any] = self.config["Global"]
        self.time = TimeLimit(self.options["max_minutes"])
        self.output = make_directory(self.options["output_dir"])
        check_machine(self.options["needs"], self.output)
        start_logging(self.output, is_main=launched_rank() == 0)
        self.world: World = start_world(self.options["device"])
        try:
            self._build()
        except BaseException:
            stop_world()
            stop_logging()
            raise

    # -- construction ------------------------------------------------------------------------------

    def _build(self) -> None:
        if self.world.device.type == "cpu":
            keep_freed_memory()
        log_config(self.config)
        self.amp = use_bf16(self.options["use_amp"], self.world.device)
        if self.options["use_amp"] == "auto":
            logger.info("use_amp: auto: %s on this device", "bf16" if self.amp else "float32")
        seed_everything(int(self.options["seed"]))
        if self.world.is_main:
            remove_leftovers(self.output)
            save_config(self.config, self.output / "config.yml")
        self.jsonl = JsonLines(self.output / "log.jsonl", self.world.is_main)
        self._build_data()
        self._build_model()
        self._build_optimizer()
        self._start()
        wanted = bool(self.options["use_tensorboard"]) and self.world.is_main
        self.board = TensorBoard(self.output, wanted, self.parts.progress.step)
        self.diagnosis = Diagnosis(self.parts, self.step, self.board, self.options)
        self.clock, self.stop_signal, self.paused = Clock(), 0, False

    def _build_data(self) -> None:
        self.charset = resolve_charset(self.config)
        common: dict[str, Any] = {
            "charset": self.charset, "seed": int(self.options["seed"]), "rank": self.world.rank,
            "world_size": self.world.size, "logger": logger,
        }  # fmt: skip
        self.loader = build_loader(self.config, "Train", **common)
        check_fonts(self.options["needs"], self.loader.dataset)
        logger.info("train dataloader has %d iters", len(self.loader))
        self.eval_loader = build_loader(self.config, "Eval", **common) if self.config.get("Eval") else None
        if self.eval_loader is None:
            logger.warning("the config has no Eval section: the run is not evaluated and writes no best.pth.")
        else:
            logger.info("valid dataloader has %d iters", len(self.eval_loader))

    def _build_model(self) -> None:
        device = self.world.device
        self.post_process = build_post_process(self.config["PostProcess"], self.options, self.charset)
        classes, given = (
            self.post_process.get_character_num(),
            self.config["Architecture"]["Decoder"].get("out_channels"),
        )
        if given not in (None, classes):
            logger.warning(
                "Architecture.Decoder.out_channels is %s, but the dictionary makes %s, which is used. Leave it out.",
                given,
                classes,
            )
        self.config["Architecture"]["Decoder"]["out_channels"] = classes
        self.model: nn.Module = build_model(self.config["Architecture"])
        self.loss = build_loss(self.config["Loss"]).to(device)
        self.evaluator = None
        if self.eval_loader is not None:
            bar = show_bar(self.options["progress_bar"], self.world.is_main)
            self.evaluator = Evaluator(
                self.eval_loader, self.post_process, self.config["Metric"], self.world,
                amp=self.amp, bar=bar,
            )  # fmt: skip
            self._check_indicator()
        self.train_metric = build_metric(self.config["Metric"]) if self.options["cal_metric_during_train"] else None
        summary.log_model(self.model, self.charset, classes)
        self.model.to(device)
        if self.options["use_sync_bn"] and self.world.size > 1:
            self.model = use_synced_batch_norm(self.model, device)

    def _check_indicator(self) -> None:
        """Before the first step, not after the first epoch: the number that picks ``best.pth`` has to exist."""
        known = [*build_metric(self.config["Metric"]).get_metric(), "fps", "correct"]
        if self._main not in known:
            raise ConfigError(f'Metric.main_indicator: no number is called "{self._main}".{nearest(self._main, known)}')

    def _build_optimizer(self) -> None:
        options, batches = self.options, len(self.loader)
        optimizer, schedule = build_optimizer(
            self.config["Optimizer"], self.config["LRScheduler"], int(options["epoch_num"]), self._schedule_steps(),
            self.model,
        )  # fmt: skip
        ema = Ema(self.model, float(options["ema_decay"])) if options["use_ema"] else None
        self.parts = RunParts(
            self.config, self.charset, self.model, optimizer, schedule, Medians(int(options["log_smooth_window"])),
            self.world, batches, self.jsonl, ema,
        )  # fmt: skip
        self.parts.progress.best = {self._main: 0}
        self.step = TrainStep(
            self.model, self.loss, optimizer, schedule, self.world, amp=self.amp,
            grad_clip=float(options["grad_clip_val"]), ema=ema, compile=options["compile"],
        )  # fmt: skip

    def _schedule_steps(self) -> int:
        """Optimizer steps that the schedule counts as an epoch."""
        return math.ceil(len(self.loader) / int(self.options["accumulation_steps"]))

    def _start(self) -> None:
        """Continue at ``latest.pth`` or ``Global.checkpoints``, or start from weights, or from scratch."""
        options, latest = self.options, self.output / "latest.pth"
        given = latest if options["auto_resume"] and broadcast(latest.exists(), self.world) else None
        if given is None and options["checkpoints"]:
            given = Path(options["checkpoints"]).expanduser()
        # other dropout masks on every process, the same weights
        seed_everything(int(options["seed"]) + self.world.rank)
        progress = self.parts.progress
        if given is not None:
            resume_run(self.parts, given)
            logger.info("resume from checkpoint %s (epoch %d)", given, progress.epoch)
            logger.info("  at step %d, after batch %d of epoch %d", progress.step, progress.batch, progress.epoch)
        elif options["pretrained_model"]:
            start_from(self.model, options["pretrained_model"], self.charset)
            if self.parts.ema is not None:
                self.parts.ema.load({"updates": 0, "state_dict": self.model.state_dict()})
        else:
            logger.info("train from scratch")
        if not options["auto_resume"] and given is None:
            self.jsonl.put_aside()
        elif given in (None, latest) and self.jsonl.cut(progress.log_size):
            logger.info("log.jsonl: lines behind the checkpoint were removed; their steps are done again")
        if given is None and self.world.is_main:
            with preserved_rng():
                summary.log_first_sample(self.loader, self.post_process, self.charset)
                summary.log_skipped(0, [self.loader.report.names], self.output)
                summary.log_differences(self.config)
                self._try_evaluation()

    def _try_evaluation(self) -> None:
        sample = None if self.eval_loader is None else summary.first_batch(self.eval_loader)
        if sample is not None and self.evaluator is not None:
            self.evaluator.try_one(self.model, sample)

    # -- the run -----------------------------------------------------------------------------------

    @property
    def _main(self) -> str:
        return str(self.config["Metric"].get("main_indicator", "acc"))

    @property
    def _finished(self) -> bool:
        p = self.parts.progress
        return (p.epoch >= self._epochs and p.epoch_done) or self._enough()

    @property
    def _epochs(self) -> int:
        return int(self.options["epoch_num"])

    def _enough(self) -> bool:
        most = self.options.get("max_steps")
        return most is not None and self.parts.progress.step >= most

    def train(self) -> dict[str, Any]:
        """Run to the end.

        Returns:
            The numbers of the best evaluation.

        Raises:
            OpenRecError: a loss that is not finite twice in a row, a full disk.
            SystemExit: SIGTERM or Ctrl-C: the run was saved and stops with status 143 or 130.
        """
        try:
            if self._finished:
                summary.log_finished(self.parts.progress, self._epochs, self.output)
            else:
                with noted_signals(self), full_disk_told(self.output):
                    self._train()
        finally:
            self.close()
        return dict(self.parts.progress.best)

    def close(self) -> None:
        """Stop workers, close files, leave the process group."""
        self.board.close()
        for loader in (self.loader, self.eval_loader):
            if loader is not None:
                loader.close()
        stop_world()
        stop_logging()

    def _train(self) -> None:
        device = self.world.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        logger.info("run with torch %s and device %s", torch.__version__, device)
        logger.info("  %s, %d process(es)", name, self.world.size)
        progress = self.parts.progress
        self.jsonl.write("start", step=progress.step, epoch=progress.epoch, torch=str(torch.__version__))
        if self.options["eval_at_start"] and progress.step == 0:
            self._evaluate()
        if progress.epoch_done:
            progress.next_epoch()
        while True:
            self._epoch()
            if progress.epoch >= self._epochs or self._enough() or self.paused:
                break
            progress.next_epoch()
        if progress.best.get("best_epoch"):
            logger.info("best metric, %s", metric_text(progress.best))
        if self.paused:
            logger.info("stopped after %g minutes; the same command continues here.", self.options["max_minutes"])
        self.jsonl.write(
            "pause" if self.paused else "end", step=progress.step, epoch=progress.epoch, best=progress.best
        )

    def _epoch(self) -> None:
        progress, size = self.parts.progress, int(self.options["accumulation_steps"])
        self.used, self.from_start = 0, progress.batch == 0
        with preserved_rng():  # a loader draws from the global generator whenever it starts
            batches = iter(self.loader.epoch(progress.epoch, progress.batch))
            group = list(itertools.islice(batches, size))
        self.model.train()
        for module in self.model.modules():  # some train differently at first, such as hard attention
            begin: Any = getattr(module, "begin_epoch", None)
            if begin is not None:
                begin(progress.epoch)
        bar = Bar(
            len(self.loader), progress.batch, f"epoch {progress.epoch}/{self._epochs}",
            show_bar(self.options["progress_bar"], self.world.is_main),
        )  # fmt: skip
        self.clock.restart()
        with bar:
            while group:
                self.clock.data_ready()
                self._step(group, bar)
                self.clock.pause()
                if self._enough() or self.paused:
                    break
                group = list(itertools.islice(batches, size))
        del batches
        self._end_epoch()

    def _step(self, group: list[Batch], bar: Bar) -> None:
        progress = self.parts.progress
        self._note_skipped(group)
        result = self.diagnosis(group, progress.step + 1, progress.batch)
        progress.step, progress.batch = progress.step + 1, progress.batch + len(group)
        self.clock.step_done(result.samples)
        self.used += result.samples
        if result.losses:
            self.parts.medians.add(result.losses)
        bar.advance(len(group), loss=result.losses.get("loss"))
        if progress.step % int(self.options["print_batch_step"]) == 0 or progress.batch >= len(self.loader):
            self._report(result)
        if due(self.options["eval_batch_step"], progress.step):
            self._evaluate()
        self._save_inside_epoch()
        self._stop_when_asked()

    def _note_skipped(self, group: list[Batch]) -> None:
        for batch in group:
            if batch.weight > 0:  # a filler's sample is another process's
                for skipped in batch.skipped:
                    self.parts.progress.skipped.setdefault(skipped.reason, []).append(skipped.name)

    def _report(self, result: StepResult) -> None:
        progress = self.parts.progress
        scores = self._training_metric(result)
        numbers = {"lr": result.lr, **scores, **self.parts.medians.get()}
        last = min(self.parts.schedule.total_steps, self.options["max_steps"] or sys.maxsize)
        left = max(0, last - progress.step)
        logger.info("%s", training_line(progress.epoch, self._epochs, progress.step, numbers, self.clock, left))
        speed = self.clock.samples_per_second * self.world.size
        self.jsonl.write(
            "train", step=progress.step, epoch=progress.epoch, lr=result.lr, **scores, **result.losses,
            grad_norm=result.grad_norm, ips=round(speed, 3), time=round(self.clock.batch, 4),
        )  # fmt: skip
        self.board.write("TRAIN", {**numbers, "grad_norm": result.grad_norm, "ips": speed}, progress.step)
        self.clock.restart()

    def _training_metric(self, result: StepResult) -> dict[str, float]:
        """Score of the step's last batch (``cal_metric_during_train``); only in steps that are logged."""
        if self.train_metric is None or result.batch is None:
            return {}
        tensors = result.batch.tensors
        scores = dict(self.train_metric(self.post_process(result.preds, tensors), tensors, training=True))
        self.train_metric.reset()
        first = {name: scores.pop(name) for name in ("acc", "norm_edit_dis") if name in scores}
        return {**first, "num_samples": float(len(result.batch)), **scores}

    # -- evaluation and files ----------------------------------------------------------------------

    def _evaluate(self) -> None:
        progress = self.parts.progress
        if self.evaluator is None or progress.evaluated == progress.step:
            return
        broadcast_buffers(self.model, self.world)
        averaged = nullcontext() if self.parts.ema is None else self.parts.ema.applied()
        try:
            with preserved_rng(), averaged:
                metrics = self.evaluator.evaluate(self.model)
        except Exception:
            if self.world.size == 1:  # several processes would wait for the one that failed
                self._save("latest.pth")
            raise
        progress.evaluated = progress.step
        main, rule = split_rule(metrics)
        logger.info("cur metric, %s", metric_text(main))
        logger.info("under OpenOCR's rule, %s", metric_text(rule))
        self.jsonl.write("eval", step=progress.step, epoch=progress.epoch, **metrics)
        self.board.write("EVAL", main, progress.step)
        indicator = self._main
        if indicator not in main:
            raise ConfigError(f'Metric.main_indicator: no number is called "{indicator}".{nearest(indicator, main)}')
        if main[indicator] >= progress.best.get(indicator, 0):
            progress.best = {**main, "best_epoch": progress.epoch}
            self._save("best.pth", with_optimizer=False)
        logger.info("best metric, %s", metric_text(progress.best))
        self.board.write("EVAL", {f"best_{indicator}": progress.best.get(indicator, 0)}, progress.step)

    def _save(self, *names: str, with_optimizer: bool = True) -> None:
        save_run(self.parts, *(self.output / name for name in names), with_optimizer=with_optimizer)
        for name in names:
            logger.info("save ckpt to %s", self.output / name)

    def _save_inside_epoch(self) -> None:
        progress, names = self.parts.progress, []
        start, every = self.options["save_iter_step"]
        if progress.step > start and progress.step % every == 0:
            names.append(f"iter_{progress.epoch_start}_{progress.step}.pth")
        latest = int(self.options["save_latest_step"] or 0)
        if names or (latest > 0 and progress.step % latest == 0):
            self._save(*names, "latest.pth")

    def _end_epoch(self) -> None:
        progress = self.parts.progress
        complete = progress.batch >= len(self.loader)
        skipped = gather(progress.skipped, self.world)
        if self.world.is_main:
            summary.log_skipped(progress.epoch, skipped, self.output)
        if complete and self.from_start and any(skipped) and not sum(gather(self.used, self.world)):
            raise DataError(
                f"epoch {progress.epoch}: not one training sample could be used; the reasons stand above and in "
                f'"{self.output / "skipped.tsv"}". Mend Train.dataset and start the same command again.'
            )
        whole = complete or not self.paused  # a run that pauses is not evaluated inside an epoch
        if (whole and due(self.options["eval_epoch_step"], progress.epoch)) or self._enough():
            self._evaluate()
        progress.epoch_done = complete
        start, every = self.options["save_epoch_step"]
        names = ["latest.pth"]
        if complete and progress.epoch > start and (progress.epoch - start) % every == 0:
            names.insert(0, f"epoch_{progress.epoch}.pth")
        self._save(*names)

    def _stop_when_asked(self) -> None:
        """After SIGTERM or Ctrl-C (in any process): save and leave. After ``max_minutes``: note it."""
        rows = gather_numbers([self.stop_signal, int(self.time.over())], self.world)
        number, self.paused = max(row[0] for row in rows), any(row[1] for row in rows)
        if number:
            self._save("latest.pth")
            logger.info("stopped by signal %d; the same command continues here.", number)
            raise SystemExit(128 + number)
