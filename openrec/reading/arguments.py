"""Command-line arguments that the reading tools share: which model, which pictures, how."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from openrec.config import add_arguments, load_config
from openrec.errors import ConfigError
from openrec.reading.inputs import MAX_PIXELS


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """``-c`` and ``-o`` as in OpenOCR, and what replaces them: ``--model`` and ``--images``."""
    add_arguments(parser, required=False)
    parser.add_argument("--model", help="checkpoint, exported model, directory of a run, or a name in weights/")
    parser.add_argument("--images", nargs="+", help="files, folders, globs")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures of one size at once (default: 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--branch", default="auto", choices=("auto", "ctc", "gtc"), help="of a GTC model")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="larger pictures are refused")


def model_and_images(
    a: argparse.Namespace, checkpoint_of: Callable[[Mapping[str, Any]], Any], images_needed: bool = True
) -> tuple[Any, Any, dict[str, Any] | None, str]:
    """``(model, images, config, device)``; the config of ``-c`` fills what the command line leaves open.

    Args:
        checkpoint_of: ``openrec.engine.evaluation.checkpoint_of``.

    Raises:
        ConfigError: one of them is missing.
    """
    if a.config is None:
        if a.opt:
            raise ConfigError("-o changes a config; give one with -c.")
        if not a.model or (images_needed and not a.images):
            missing = " and ".join(n for n, v in (("--model", a.model), ("--images", a.images)) if not v)
            raise ConfigError(
                f"{missing} missing: expected --model and --images, or -c CONFIG -o Global.infer_img=PATH."
                if images_needed
                else "--model missing: expected --model, or -c CONFIG."
            )
        return a.model, a.images, None, a.device
    config = load_config(a.config, a.opt)
    options = config["Global"]
    images = a.images or options["infer_img"]
    model = a.model or (options["onnx_model_path"] if options["backend"] == "onnx" else checkpoint_of(options))
    for key, value in (("onnx_model_path", model), ("infer_img", images or not images_needed)):
        if not value:
            raise ConfigError(f"Global.{key} is empty. Give it, e.g. -o Global.{key}=PATH.")
    device = options["device"] if a.device == "auto" and options["device"] in ("cpu", "mps") else a.device
    return model, images, config, device
