"""Show where a recogniser looks: one row per image with its text, confidences and vertical attention.

Works for CTC-type heads. The vertical attention is RCTC's (Du et al., "SVTRv2", ICCV 2025): for
every column of the feature map, how much each row contributes to what is read there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openrec.charset import Charset
from openrec.checkpoint import read_checkpoint
from openrec.data import build_loader
from openrec.errors import ConfigError
from openrec.figure import drawing
from openrec.modeling import build_model
from openrec.modeling.decoders.rctc_decoder import RCTCDecoder
from openrec.postprocess import build_post_process


def find_rctc(model: nn.Module) -> RCTCDecoder | None:
    """The RCTC head of a model, also inside ``GTCDecoder``; ``None`` when there is none."""
    return next((m for m in model.modules() if isinstance(m, RCTCDecoder)), None)


@contextmanager
def record_attention(head: RCTCDecoder) -> Iterator[list[Tensor]]:
    """Collect the vertical attention ``[B, H, W]`` of every forward pass inside the block."""
    maps: list[Tensor] = []

    def keep(_: nn.Module, __: Any, attention: Tensor) -> None:
        maps.append(attention.detach().float())

    hook = head.row_softmax.register_forward_hook(keep)
    try:
        yield maps
    finally:
        hook.remove()


@torch.no_grad()
def reading_page(
    model: nn.Module, images: Tensor, decode: Any, path: str | Path, truths: Sequence[str] | None = None
) -> Path:
    """Draw what the model read in ``images`` and where it looked.

    Args:
        model: a recogniser in evaluation mode with an RCTC head.
        images: ``[B, 3, H, W]`` in [-1, 1], one size.
        decode: probabilities ``[B, T, classes]`` -> list of ``(text, score)``.
        path: PNG to write.
        truths: the true texts, shown when they differ.
    """
    head = find_rctc(model)
    if head is None:
        raise ConfigError("reading_page: expected a model with an RCTC head; this one has none.")
    with record_attention(head) as maps:
        output = model(images)
    probabilities = (output["ctc_pred"] if isinstance(output, dict) else output).float().cpu()
    readings, attention = decode(probabilities), maps[0].cpu().numpy()
    texts = [text for text, _ in readings] + list(truths or ())
    with drawing(texts) as figure_type:
        figure = figure_type(figsize=(9, 1.0 * len(images)), layout="constrained")
        axes = np.atleast_2d(figure.subplots(len(images), 3, width_ratios=[3, 3, 4]))
        for row, image in enumerate(images.cpu()):
            picture = (image.permute(1, 2, 0).numpy() * 0.5 + 0.5).clip(0, 1)
            truth = truths[row] if truths is not None else None
            _draw_row(axes[row], picture, readings[row], attention[row], probabilities[row].numpy(), truth)
        for axis, title in zip(axes[0], ("read (confidence)", "looked at", "probability per column")):
            axis.text(0.5, 1.45, title, transform=axis.transAxes, ha="center", fontsize=9, weight="bold")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    return Path(path)


def page_of_checkpoint(config: Mapping[str, Any], weights: str | Path, path: str | Path, count: int = 10) -> Path:
    """``reading_page`` of the first evaluation images for a config and one of its checkpoints."""
    state, architecture = read_checkpoint(weights), copy.deepcopy(dict(config["Architecture"]))
    charset = Charset.from_state(state["charset"])
    post_process = build_post_process(config["PostProcess"], config["Global"], charset)
    architecture["Decoder"]["out_channels"] = post_process.get_character_num()
    model = build_model(architecture)
    model.load_state_dict(state["state_dict"])
    loader = build_loader(config, "Eval", charset=charset)
    batch = next(iter(loader.epoch(1)))
    loader.close()
    return reading_page(model.eval(), batch.tensors[0][:count], post_process, path, batch.texts[:count])


def _draw_row(
    axes: Any, picture: np.ndarray, reading: tuple[str, float], attention: np.ndarray, columns: np.ndarray, truth: Any
) -> None:
    height, width = picture.shape[:2]
    text, score = reading
    wrong = truth is not None and text.lower() != truth.lower()
    title = f"{text or '(nothing)'}  {score:.2f}" + (f"   true: {truth}" if wrong else "")
    axes[0].imshow(picture)
    axes[0].set_title(title, fontsize=8, color="crimson" if wrong else "black", pad=2)
    axes[1].imshow(picture.mean(-1), cmap="gray")
    axes[1].imshow(attention, extent=(0, width, height, 0), cmap="inferno", alpha=0.55, interpolation="bilinear")
    best = columns.argmax(-1)
    confidence = columns.max(-1)
    centres = (np.arange(len(best)) + 0.5) * width / len(best)
    axes[2].bar(centres, confidence, width=width / len(best) * 0.9, color=np.where(best == 0, "lightgray", "tab:blue"))
    axes[2].set_xlim(0, width)
    axes[2].set_ylim(0, 1)
    for axis in axes[:2]:
        axis.set_axis_off()
    axes[2].tick_params(labelsize=6, bottom=False, labelbottom=False)
