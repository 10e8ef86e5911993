"""Does an exported model give what PyTorch gives? Asked before a file is written.

Texts must be equal on every picture, and probabilities to ``TOLERANCE``, also for batches of one and at several widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openrec.charset import Charset
from openrec.data.render import WordRenderer
from openrec.errors import OpenRecError, SampleError
from openrec.export.subject import Sizes, Subject
from openrec.reading.batches import Item, Prepare, grouped, stack
from openrec.reading.inputs import MAX_PIXELS, sources

TOLERANCE = 1e-3
WIDTHS = 4
Run = Callable[[np.ndarray], np.ndarray]


class ExportRefused(OpenRecError):
    """The exported model reads differently; nothing was written."""


@dataclass
class Agreement:
    """How an exported model compares with PyTorch.

    Attributes:
        pictures: how many were read by both; texts: how many gave the same text.
        largest: largest difference of a probability.
        widths: sizes ``(height, width)`` px that were compared.
        differing: examples ``(name, PyTorch's text, the export's)``.
        worst: the batch with the largest difference, float32 ``[B, C, H, W]``.
    """

    pictures: int = 0
    texts: int = 0
    largest: float = 0.0
    widths: list[tuple[int, int]] = field(default_factory=list)
    differing: list[tuple[str, str, str]] = field(default_factory=list)
    worst: np.ndarray | None = None

    @property
    def good(self) -> bool:
        return self.texts == self.pictures and self.largest < TOLERANCE

    def __str__(self) -> str:
        sizes = ", ".join(f"{h}x{w}" for h, w in sorted(set(self.widths)))
        texts = f"{self.texts} of {self.pictures} texts equal, largest difference of a probability {self.largest:.1e}"
        return texts + (f", sizes {sizes}" if sizes else "")


def pictures(images: Any, charset: Charset, count: int = 200, seed: int = 0) -> list[Any]:
    """``count`` pictures to compare on: the user's own, else rendered words."""
    if images is not None:
        return list(sources(images))[:count]
    renderer = WordRenderer(charset, _language(charset), word_split="test")
    return [renderer.render(np.random.default_rng((seed, i))).image for i in range(count)]


def _language(charset: Charset) -> str:
    """A language whose words are written in this charset."""
    text = "".join(charset.characters)
    if any("가" <= c <= "힣" for c in text):
        return "ko"
    return "zh" if any("一" <= c <= "鿿" for c in text) else "en"


def compare(subject: Subject, run: Run, images: Sequence[Any], sizes: Sizes) -> Agreement:
    """Read ``images`` with both, as a recogniser would, and some of them at other widths and alone."""
    found, post_process = Agreement(), subject.card.post_process()
    shown: list[Item] = []
    for group in grouped(sources(images), Prepare(subject.card.preprocess, "RGB", MAX_PIXELS), 16):
        if group.items and group.items[0].image.ndim != 4:
            _compare_batch(found, subject, run, stack(group.items), [i.name for i in group.items], post_process)
            shown += group.items[: WIDTHS if len(shown) < 2 * WIDTHS else 0]
    if not found.pictures:
        raise SampleError("none of the pictures given for the comparison can be read")
    for number, (height, width) in enumerate(probe_sizes(sizes)):
        batch = np.concatenate([_resized(stack([item]), height, width) for item in shown[: 1 + number % 3]])
        names = [f"{item.name} at {height}x{width}" for item in shown]
        _compare_batch(found, subject, run, batch, names, post_process)
    return found


def probe_sizes(sizes: Sizes) -> list[tuple[int, int]]:
    """``(height, width)`` px over the whole range, ``WIDTHS`` of them where the width is free."""
    widths = sorted({int(w) // 4 * 4 or int(w) for w in np.linspace(*sizes.width, WIDTHS)})
    widest = [(sizes.height[0], w) for w in widths]
    return widest + ([(sizes.height[1], widths[0])] if sizes.height[0] < sizes.height[1] else [])


def _resized(batch: np.ndarray, height: int, width: int) -> np.ndarray:
    return nn.functional.interpolate(torch.from_numpy(batch), (height, width), mode="bilinear").numpy()


@torch.no_grad()
def _compare_batch(
    found: Agreement, subject: Subject, run: Run, batch: np.ndarray, names: list[str], read: Any
) -> None:
    ours, theirs = subject(torch.from_numpy(batch)).float().numpy(), np.asarray(run(batch), np.float32)
    steps = min(ours.shape[1], theirs.shape[1])  # PyTorch stops reading when all texts have ended
    difference = float(np.abs(ours[:, :steps] - theirs[:, :steps]).max())
    if found.worst is None or not difference <= found.largest:  # also when it is no number
        found.worst, found.largest = batch, max(found.largest, float(np.nan_to_num(difference, nan=np.inf)))
    found.widths.append((batch.shape[2], batch.shape[3]))
    for name, a, b in zip(names, read.decode_detailed(ours), read.decode_detailed(theirs)):
        found.pictures += 1
        found.texts += a.text == b.text
        if a.text != b.text and len(found.differing) < 3:
            found.differing.append((name, a.text, b.text))


def refuse(found: Agreement, layer: str | None) -> ExportRefused:
    """The error for a model that came out different."""
    where = f'The first layer that differs is "{layer}".' if layer else "No single layer explains it."
    examples = "".join(f'\n  {name}: PyTorch reads "{a}", the export "{b}"' for name, a, b in found.differing)
    return ExportRefused(
        f"the exported model does not agree with PyTorch: {found}. {where}{examples}\nNothing was written. Please "
        "report it with the config; until it is mended, read with the checkpoint."
    )


def first_difference(subject: Subject, images: np.ndarray, theirs: Mapping[str, list[np.ndarray]]) -> str | None:
    """Name of the first layer whose output no value computed inside it in ``theirs`` equals.

    Layers that run more than once (in a decoder's loop) are covered by the layer around them.
    """
    outputs: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            outputs.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, m in subject.model.named_modules() if name]
    try:
        with torch.no_grad():
            subject(torch.from_numpy(images))
    finally:
        for hook in hooks:
            hook.remove()
    for name, seen in outputs.items():  # in the order in which layers finish: the innermost first
        if len(seen) == 1 and isinstance(seen[0], Tensor) and _differs(seen[0], theirs.get(name, [])):
            return name
    return None


def _differs(ours: Tensor, theirs: Sequence[np.ndarray]) -> bool:
    same = [t for t in theirs if t.shape == tuple(ours.shape)]
    if not same or not ours.is_floating_point():
        return False  # folded into its neighbour
    scale = max(1.0, float(ours.abs().max()))
    return not any(float(np.abs(ours.float().numpy() - t).max()) <= TOLERANCE * scale for t in same)


def compare_texts(ours: Any, theirs: Any, images: Sequence[Any]) -> Agreement:
    """Two recognisers on the same pictures: texts and the scores of their characters."""
    found = Agreement()
    for a, b in zip(ours(list(images)), theirs(list(images))):
        if a.error is not None:
            continue
        found.pictures += 1
        found.texts += a.text == b.text
        if a.text == b.text:
            found.largest = max([found.largest, *(abs(x - y) for x, y in zip(a.char_scores, b.char_scores))])
        elif len(found.differing) < 3:
            found.differing.append((a.name, a.text, b.text))
    return found
