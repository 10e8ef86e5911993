"""Every key a config may hold outside the constructors: sections, ``Global``, ``dataset`` and ``loader``.

Keys of encoders, losses, transforms and so on are not listed here: those are the parameters of the
classes in ``openrec.registry``. Key names, meanings and defaults follow OpenOCR's recognition YAMLs
(https://github.com/Topdu/OpenOCR, Apache-2.0); keys below the line "of this project" are new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()


@dataclass(frozen=True)
class Key:
    """One key: its kind (a name in ``KINDS``), its default and what it means.

    ``default`` may be ``REQUIRED``. ``ignored`` keys are accepted with one warning and do nothing. ``least`` is
    the smallest number that makes sense.
    """

    kind: str
    default: Any
    meaning: str
    ignored: bool = False
    least: float | None = None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and float(value).is_integer()


def _is_pair(value: Any) -> bool:
    """``[start, every]``: both whole numbers, ``every`` at least 1."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and all(_is_count(v) for v in value)
        and value[1] >= 1
    )


# kind -> (test of a value, how a message calls it)
KINDS: dict[str, tuple[Any, str]] = {
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "bool or auto": (lambda v: isinstance(v, bool) or v == "auto", "true, false or auto"),
    "int": (_is_count, "a whole number"),
    "int or null": (lambda v: v is None or _is_count(v), "a whole number or null"),
    "float": (_is_number, "a number"),
    "float or null": (lambda v: v is None or _is_number(v), "a number or null"),
    "str": (lambda v: isinstance(v, str), "a text"),
    "path": (lambda v: v is None or isinstance(v, str), "a path or null"),
    "pair": (_is_pair, "a list of two whole numbers [start, every]"),
    "step": (
        lambda v: v is None or (_is_count(v) and v >= 1) or _is_pair(v),
        "a whole number of at least 1, or a list [start, every], or null",
    ),
    "device": (lambda v: v in ("gpu", "cuda", "cpu", "mps"), "gpu, cpu or mps"),
    "dtype": (lambda v: v in ("bfloat16", "float16"), "bfloat16 or float16"),
    "decay": (lambda v: _is_number(v) and 0 <= v < 1, "a number, at least 0 and below 1"),
    "start": (lambda v: v in (None, "fork", "spawn", "forkserver"), "fork, spawn, forkserver or null"),
    "mapping": (lambda v: isinstance(v, Mapping), "a mapping"),
    "list": (lambda v: isinstance(v, Sequence) and not isinstance(v, str), "a list"),
    "section": (lambda v: v is None or isinstance(v, Mapping), "a mapping or null"),
    "any": (lambda v: True, "anything"),
}

GLOBAL: dict[str, Key] = {
    "device": Key("device", "gpu", "gpu falls back to the CPU, with a log line, where there is no GPU"),
    "epoch_num": Key("int", REQUIRED, "number of epochs (also spelt epochs)", least=1),
    "log_smooth_window": Key("int", 20, "logged values are medians over that many iterations", least=1),
    "print_batch_step": Key("int", 10, "one log line every that many steps", least=1),
    "output_dir": Key("str", "output", "directory for logs and checkpoints; made if missing"),
    "save_epoch_step": Key("pair", [0, 1], "[start, every]: keep epoch_<e>.pth when e > start, every that many epochs"),
    "save_iter_step": Key(
        "pair", [100000000000, 2000], "[start, every]: keep iter_<a>_<b>.pth in the same way, in steps"
    ),
    "eval_epoch_step": Key("step", 1, "evaluate after every that many epochs, or [start, every]; null: never"),
    "eval_batch_step": Key(
        "step", None, "evaluate inside an epoch every that many steps, or [start, every]; null: never"
    ),
    "cal_metric_during_train": Key("bool", False, "decode and score the training batches that are logged"),
    "pretrained_model": Key("path", None, "weights to start from; what fits is loaded, the rest is listed"),
    "checkpoints": Key("path", None, "checkpoint to resume from (strict); wins over pretrained_model"),
    "use_tensorboard": Key("bool", False, "write TensorBoard files; needs tensorboard, nothing else"),
    "infer_img": Key("path", None, "image file or directory for tools/infer_rec.py"),
    "character_dict_path": Key("path", None, "dictionary, one character a line; null: 0-9a-z, labels lower-cased"),
    "max_text_length": Key("int", 25, "labels with more characters are not used in training", least=1),
    "use_space_char": Key("bool", False, "append the space to the dictionary, for encoders and decoders alike"),
    "use_amp": Key(
        "bool or auto",
        False,
        "bf16 autocast in training and evaluation; auto: where the device computes bf16 itself",
    ),
    "grad_clip_val": Key("float", 0, "largest L2 norm of the gradient; 0 is off", least=0),
    "accumulation_steps": Key("int", 1, "batches per optimizer step", least=1),
    "use_sync_bn": Key("bool", False, "BatchNorm statistics over all ranks"),
    "seed": Key("int", 48, "seed of weights, order and augmentation", least=0),
    "export_dir": Key("path", None, "directory for exported models"),
    "backend": Key("path", None, "torch or onnx, for tools/infer_rec.py"),
    "onnx_model_path": Key("path", None, "model file for backend: onnx"),
    # of this project
    "auto_resume": Key("bool", True, "continue at output_dir/latest.pth when it is there"),
    "save_latest_step": Key(
        "int", 500, "write latest.pth every that many optimizer steps; 0: after each epoch only", least=0
    ),
    "use_ema": Key("bool", False, "keep an exponential moving average of the weights; evaluate and save it too"),
    "ema_decay": Key("decay", 0.9999, "decay of that average per optimizer step"),
    "compile": Key("bool", False, "torch.compile the model"),
    "eval_at_start": Key("bool", False, "evaluate once before the first step"),
    "diagnose": Key("bool", False, "log numbers on what the model does inside, and warn where they look wrong"),
    "diagnose_step": Key("int or null", None, "do that every that many steps; null: print_batch_step", least=1),
    "max_steps": Key("int or null", None, "stop after that many optimizer steps of the run", least=1),
    "max_minutes": Key(
        "float or null", None, "save and stop after that many minutes of this call; the same command continues"
    ),
    "needs": Key(
        "section", None, "checked at the start: memory_gb, disk_gb that must be free, font_families for rendered words"
    ),
    "progress_bar": Key("bool", True, "show a progress bar where the output is a terminal"),
    # known to OpenOCR, without effect here
    "save_res_path": Key("any", None, "read by nothing in OpenOCR either", ignored=True),
    "project_name": Key("any", None, "read by nothing in OpenOCR either", ignored=True),
    "run_name": Key("any", None, "name of a Weights & Biases run, which is not used here", ignored=True),
    "distributed": Key("any", None, "decided by the launcher (torchrun)", ignored=True),
    "total_iter_steps": Key("any", None, "for iterable data sets, which are not used here", ignored=True),
    "resume_from_iter": Key("any", None, "every checkpoint resumes inside its epoch", ignored=True),
    "use_transformers": Key("any", None, "for models that are not part of this project", ignored=True),
    "vlm_ocr_config": Key("any", None, "for models that are not part of this project", ignored=True),
}
GLOBAL_ALIASES = {"epochs": "epoch_num"}

SECTIONS: dict[str, Key] = {
    "Global": Key("mapping", REQUIRED, "the run: length, output, dictionary, precision"),
    "Optimizer": Key("section", None, "a class of torch.optim and its arguments"),
    "LRScheduler": Key("section", None, "learning-rate schedule and its arguments"),
    "Architecture": Key("mapping", REQUIRED, "Transform, Encoder, Decoder"),
    "Loss": Key("section", None, "loss and its arguments"),
    "PostProcess": Key("mapping", REQUIRED, "from predictions to text"),
    "Metric": Key("mapping", REQUIRED, "from texts to numbers"),
    "Train": Key("section", None, "dataset, sampler, loader for training"),
    "Eval": Key("section", None, "dataset, sampler, loader for evaluation; null: no evaluation"),
    "Export": Key("section", None, "export_shape, dynamic_axes, export_dir"),
    # written by the tools into the config they keep
    "filename": Key("any", None, "stem of the config file"),
    "config": Key("any", None, "path of the config file"),
    "local_rank": Key("any", None, "of old launchers; not used"),
    "eval": Key("any", None, "flag of train_rec.py; always true"),
    "type": Key("any", None, "flag of export_rec.py"),
}
NEEDED_BY_MODE = {
    "train": ("Global", "Architecture", "PostProcess", "Metric", "Optimizer", "LRScheduler", "Loss", "Train"),
    "eval": ("Global", "Architecture", "PostProcess", "Metric", "Eval"),
}

ARCHITECTURE: dict[str, Key] = {
    "model_type": Key("any", None, "rec; for readers"),
    "algorithm": Key("any", None, "name of the method; for readers"),
    "in_channels": Key("int", 3, "image channels"),
    "use_wd": Key("bool", True, "false: the model names no parameters that go undecayed"),
    "Transform": Key("section", None, "spatial transform in front of the encoder"),
    "Encoder": Key("mapping", REQUIRED, "name and arguments"),
    "Decoder": Key("mapping", REQUIRED, "name and arguments"),
}

# Added to the optimizer class's own arguments.
OPTIMIZER_EXTRA: dict[str, Key] = {
    "name": Key("str", REQUIRED, "a class of torch.optim"),
    "lr": Key("float", REQUIRED, "learning rate of the whole global batch; not scaled automatically"),
    "weight_decay": Key("float", 0, "decoupled or L2, as the class does it", least=0),
    "filter_bias_and_bn": Key("bool", False, "no weight decay for biases, norms and what the model names"),
    "lr_mult": Key("mapping", {}, "{part of a parameter name: factor}; the first match wins"),
}

DATA: dict[str, Key] = {
    "dataset": Key("mapping", REQUIRED, "name and arguments"),
    "sampler": Key("section", None, "batch sampler; decides batch size and image size"),
    "loader": Key("mapping", REQUIRED, "workers and batches"),
}

LOADER: dict[str, Key] = {
    "shuffle": Key("bool", False, "another order in every epoch; a sampler shuffles training data anyway"),
    "batch_size_per_card": Key("int", 1, "samples per batch and process where there is no sampler", least=1),
    "drop_last": Key("bool", False, "leave out a last, smaller batch where there is no sampler"),
    "num_workers": Key("int", 0, "loader processes", least=0),
    "pin_memory": Key("bool", False, "page-locked batches for faster copies to a GPU"),
    "max_ratio": Key("int", 10, "largest ratio bucket of Ratio* datasets", least=1),
    "min_ratio": Key("int", 1, "smallest ratio bucket of Ratio* datasets", least=1),
    "collate_fn": Key("path", None, "name of a collate function; null: the usual one"),
    "start_method": Key("start", None, "how workers start: fork, spawn or forkserver; null: the platform's way"),
}

EXPORT: dict[str, Key] = {
    "export_shape": Key("list", [1, 3, 32, 128], "shape of the example input"),
    "dynamic_axes": Key("list", [], "axes that may change"),
    "export_dir": Key("path", None, "default: output_dir/export"),
}

# Filled in by the program, so never missing from a config.
CONTEXT_KEYS = frozenset(GLOBAL) | {
    "in_channels", "out_channels", "charset", "transforms", "dataset", "is_training", "training", "mode", "rank",
    "world_size", "epochs", "step_each_epoch", "steps_per_epoch", "last_epoch", "optimizer", "params", "logger",
    "first_bs", "max_ratio", "min_ratio", "shuffle", "image_shape", "lr",
}  # fmt: skip


def problems_of(config: Mapping[str, Any], keys: Mapping[str, Key], where: str) -> list[str]:
    """Values of the wrong kind, required keys that are missing; unknown keys are left to the caller."""
    problems = []
    for name, key in keys.items():
        at = f"{where}.{name}" if where else name
        if name not in config:
            if key.default is REQUIRED:
                problems.append(f"{at}: missing. It is needed: {key.meaning}.")
            continue
        test, wording = KINDS[key.kind]
        value = config[name]
        if not test(value):
            problems.append(f"{at}: expected {wording}, got {value!r}{quoted_number_hint(value)}.")
        elif key.least is not None and value is not None and value < key.least:
            problems.append(f"{at}: expected {wording}, at least {key.least:g}, got {value!r}.")
    return problems


def data_sections(mode: str) -> tuple[str, ...]:
    """The data that a mode ("train", "eval") reads."""
    return ("Train", "Eval") if mode == "train" else ("Eval",)


def op_parts(op: Any) -> tuple[Any, Any]:
    """Name and arguments of one entry of ``transforms``; a name alone is an op without arguments."""
    if isinstance(op, Mapping) and len(op) == 1:
        ((name, arguments),) = op.items()
        return name, {} if arguments is None else arguments
    return (op, {}) if isinstance(op, str) else (None, None)


def quoted_number_hint(value: Any) -> str:
    """``' (a quoted text; ...)'`` when ``value`` is a text that reads as a number or a truth value."""
    if not isinstance(value, str):
        return ""
    if value.strip().lower() in ("true", "false"):
        return " (a text; write it without quotes)"
    try:
        float(value)
    except ValueError:
        return ""
    return " (a text; write the number without quotes)"
