"""Read pictures with a trained model: the Python API.

    import openrec

    recognizer = openrec.load("output/run/best.pth")
    for word in recognizer("crops/", batch_size=64):
        print(word.name, word.text, word.score)

Characters, preprocessing and architecture come from the file. A batch holds pictures of one size, as in evaluation, so
that the result does not depend on what else was read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openrec.errors import ConfigError
from openrec.postprocess.base import Decoded
from openrec.postprocess.ctc_postprocess import CTCLabelDecode
from openrec.reading.backends import choose_device
from openrec.reading.batches import Group, Item, Prepare, grouped, joined, stack
from openrec.reading.inputs import MAX_PIXELS, sources
from openrec.reading.loading import ModelCard, open_model
from openrec.reading.preprocessing import Preprocessor

logger = logging.getLogger("openrec")


@dataclass(frozen=True, slots=True)  # a call may return many thousands
class Text:
    """What was read in one picture.

    Attributes:
        text: the characters; empty where nothing was read.
        score: mean probability of the characters, 0 for an empty text. It ranks, it is no calibrated probability.
        char_scores: probability of each character.
        char_x: centre of each character, share of the picture's width from its left edge (0 to 1); None where the
            decoder has no alignment of its own. CTC gives the column at which a character first shows; behind a
            transform that straightens the picture, in the straightened one.
        char_boxes: (left, top, right, bottom) of each character, shares of the picture's width and height, of a
            decoder that detects characters (DINO); else None.
        name: path of the file, or ``image 3``.
        size: ``(width, height)`` of the picture in pixels; None when it could not be opened.
        error: why it could not be read, else None.
        seconds: model time of its batch, divided by the pictures in it.
    """

    text: str = ""
    score: float = 0.0
    char_scores: list[float] = field(default_factory=list)
    char_x: list[float] | None = None
    name: str = ""
    size: tuple[int, int] | None = None
    error: str | None = None
    seconds: float = 0.0
    char_boxes: list[list[float]] | None = None

    def __str__(self) -> str:
        return self.text

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


class Recognizer:
    """Reads pictures; ``openrec.load`` makes one.

    Args:
        card: what the model is.
        backend: what computes, see ``openrec.reading.backends``.
        branch: of a GTC model: ``ctc``, or ``gtc`` for its guide; ``auto``: the guide where the config says
            ``PostProcess.only_gtc``, else CTC.
        name: of the model, for messages.
    """

    def __init__(self, card: ModelCard, backend: Any, *, branch: str = "auto", name: str = "") -> None:
        if branch not in ("auto", "ctc", "gtc"):
            raise ConfigError(f"branch: expected auto, ctc or gtc, got {branch!r}.")
        self.card, self.backend, self.name = card, backend, name
        self.post_process = card.post_process()
        guided = getattr(self.post_process, "only_gtc", False)
        self.branch = branch if branch != "auto" else ("gtc" if guided else "ctc")
        if branch == "gtc" and not hasattr(self.post_process, "gtc_label_decode"):
            raise ConfigError(
                "branch: gtc needs a GTC model that kept its guide (infer_gtc: True); this one has none. "
                "Use branch auto or ctc."
            )

    @property
    def charset(self) -> Any:
        """The characters it reads."""
        return self.card.charset

    @property
    def preprocess(self) -> Preprocessor:
        return self.card.preprocess

    @property
    def model(self) -> torch.nn.Module:
        """The PyTorch model.

        Raises:
            ConfigError: an exported file runs, not PyTorch.
        """
        if not hasattr(self.backend, "model"):
            raise ConfigError(f"{self.name or 'this model'} runs as {self.backend.name}; load its .pth for the model.")
        return self.backend.model

    def __call__(
        self,
        images: Any,
        batch_size: int = 32,
        *,
        workers: int = 0,
        color: str = "RGB",
        max_pixels: int = MAX_PIXELS,
        progress: Callable[[Text], None] | None = None,
    ) -> list[Text]:
        """Read every picture; one result for each, in order. A broken one has ``error`` set and stops nothing.

        Args:
            images: paths, folders, globs, arrays, Pillow images, bytes, or a sequence of them.
            batch_size: pictures of one size that are computed together.
            workers: threads that decode and resize beside the model; 0: none.
            color: channel order of arrays, ``RGB`` or ``BGR`` (OpenCV's).
            max_pixels: larger pictures are refused, each with a message.
            progress: called after each picture.

        Raises:
            DataError: a folder or glob without pictures; something that is no picture.
        """
        names = sources(images)
        results: list[Text | None] = [None] * len(names)
        for index, text in self.read(names, batch_size, workers=workers, color=color, max_pixels=max_pixels):
            results[index] = text
            if progress is not None:
                progress(text)
        return [text for text in results if text is not None]

    def read(
        self, images: Any, batch_size: int = 32, *, workers: int = 0, color: str = "RGB", max_pixels: int = MAX_PIXELS
    ) -> Iterator[tuple[int, Text]]:
        """The same as pairs ``(position, result)`` as soon as each is there, which is not in order of position.

        Only the pictures of the batches under way are in memory.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {batch_size}.")
        if max_pixels < 1:
            raise ConfigError(f"max_pixels: expected at least 1, got {max_pixels}.")
        if color not in ("RGB", "BGR"):
            raise ConfigError(f"color: expected RGB or BGR, got {color!r}.")
        prepare = Prepare(self.preprocess, color, max_pixels)
        for group in grouped(sources(images), prepare, batch_size, workers):
            yield from self._read_group(group)

    def explain(self, image: Any) -> Any:
        """Read one picture and tell where the model looked: an ``openrec.reading.looking.Explanation``.

        ``openrec.reading.word_page.page`` makes HTML of it. Raises ``SampleError`` for a picture that cannot be read.
        """
        from openrec.reading.looking import explain

        return explain(self, image)

    def warm_up(self, batch_size: int = 32) -> None:
        """Compute one batch of every size that pictures can get, so that the first real one is not slower."""
        channels = int(self.card.config["Architecture"].get("in_channels", 3))
        for width, height in self.preprocess.shapes():
            self.backend.run(np.zeros((batch_size, channels, height, width), np.float32))

    def predict(self, images: np.ndarray) -> list[Decoded]:
        """Texts of a ready batch, float32 ``[B, C, H, W]`` in [-1, 1]."""
        return self.decode(self.backend.run(images))

    def decode(self, predictions: Any) -> list[Decoded]:
        """Texts of what the backend gave."""
        if hasattr(self.post_process, "gtc_label_decode"):
            return self.post_process.decode_detailed(predictions, self.branch)
        return self.post_process.decode_detailed(predictions)

    def frames(self, predictions: Any, width: int) -> int | None:
        """Columns that a CTC reading of an input ``width`` px wide has; None where positions are no columns."""
        if self.branch == "gtc" or not isinstance(
            getattr(self.post_process, "ctc_label_decode", self.post_process), CTCLabelDecode
        ):
            return None
        if isinstance(predictions, Mapping):
            predictions = predictions["ctc_pred"]
        predictions = predictions[-1] if isinstance(predictions, (list, tuple)) else predictions
        steps = int(predictions.shape[1])
        return steps if steps <= width // 2 else None  # more: a map read row by row

    def _read_group(self, group: Group) -> Iterator[tuple[int, Text]]:
        """Results of a batch, or of pictures that could not be opened."""
        for failed in group.failed:
            yield failed.number, Text(name=failed.name, size=failed.size, error=failed.reason)
        if not group.items:
            return
        try:
            yield from self._run(group.items)
        except torch.OutOfMemoryError:
            if len(group.items) == 1:
                raise
            half = len(group.items) // 2
            logger.warning("not enough GPU memory for %d pictures at once; half as many are tried", len(group.items))
            for part in (group.items[:half], group.items[half:]):
                yield from self._read_group(Group(part, []))

    def _run(self, items: list[Item]) -> list[tuple[int, Text]]:
        images = stack(items)
        start = time.perf_counter()
        predictions = self.backend.run(images)
        # brings the numbers to the CPU, so the clock sees the whole work
        decoded, boxes = self._decode_with_boxes(predictions)
        seconds = (time.perf_counter() - start) / len(items)
        columns = self.frames(predictions, images.shape[-1])
        if items[0].image.ndim == 4:
            decoded, columns, boxes = [joined(decoded)], None, None
        texts = [_text(text, item, columns, seconds) for item, text in zip(items, decoded)]
        if boxes is not None:
            texts = [_placed(text, item, own) for text, item, own in zip(texts, items, boxes)]
        return [(item.number, text) for item, text in zip(items, texts)]

    def _decode_with_boxes(self, predictions: Any) -> tuple[list[Decoded], list[np.ndarray] | None]:
        """Texts, and where the decoder finds characters their boxes (cx, cy, w, h) in parts of the input."""
        if not hasattr(self.post_process, "with_boxes"):
            return self.decode(predictions), None
        found = self.post_process.with_boxes(predictions)
        return [text for text, _ in found], [boxes for _, boxes in found]


def _text(decoded: Decoded, item: Item, columns: int | None, seconds: float) -> Text:
    where = None
    if columns:
        # padding stands on the right: shares of the input become shares of the picture
        where = [round(min(1.0, (p + 0.5) / columns / item.valid), 4) for p in decoded.positions]
    scores = [float(s) for s in decoded.char_scores]
    return Text(decoded.text, float(decoded.score), scores, where, item.name, item.size, None, seconds)


def _placed(text: Text, item: Item, boxes: np.ndarray) -> Text:
    """With boxes in parts of the picture: padding stands on the right of the input."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    corners = np.concatenate((centre - half, centre + half), 1) / np.array([item.valid, 1.0, item.valid, 1.0])
    corners = corners.clip(0, 1)
    middle = ((corners[:, 0] + corners[:, 2]) / 2).round(4)
    return replace(text, char_x=middle.tolist(), char_boxes=corners.round(4).tolist())


def load(
    path_or_name: str | Path,
    *,
    device: str | torch.device = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
    branch: str = "auto",
    amp: bool = False,
    compile: bool = False,
) -> Recognizer:
    """A recogniser from a checkpoint (``.pth``, ``.safetensors``), an export (``.onnx``, ``.pt2``), or a name.

    Args:
        path_or_name: a file, the directory of a run (its best checkpoint), or the name of a file in ``weights/``
            (``small-en`` for ``weights/small-en.safetensors``; ``$OPENREC_WEIGHTS`` names other folders).
        device: ``auto`` (the GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        config: a YAML, or a loaded config, for files that hold none; stands above the one in the file.
        branch: of a GTC model: ``ctc``, ``gtc`` for its guide, or ``auto`` (see ``Recognizer``).
        amp: bf16 autocast.
        compile: ``torch.compile`` the model.

    Raises:
        OpenRecError: no such file, or one that cannot be used; the message says what to do.
    """
    card, backend, file = open_model(
        path_or_name, config=config, device=choose_device(device), amp=amp, compile=compile
    )
    return Recognizer(card, backend, branch=branch, name=str(file))
