"""Where a model looked while it read one picture: columns of a CTC head, attention, boxes, sampling points.

What modules tell through ``openrec.modeling.record`` is collected here; where a decoder tells nothing, the gradient of
each character's log-probability with respect to the feature map stands in (Selvaraju et al., "Grad-CAM", ICCV 2017).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from openrec.errors import SampleError
from openrec.postprocess.base import Decoded
from openrec.reading.batches import Failed, Item, Prepare, joined, stack
from openrec.reading.inputs import MAX_PIXELS, sources

_LOCK = threading.Lock()  # one explanation at a time: modules have one listener


@dataclass
class Points:
    """Sampling points of one module: ``places`` [groups, queries, points, 2] and ``origins`` [queries, 2], both (x, y)
    as shares of the input; ``origins`` is None where a query has no place of its own."""

    module: str
    places: np.ndarray
    origins: np.ndarray | None = None


@dataclass
class Explanation:
    """One picture read, and how.

    Attributes:
        name, decoded, image: the picture's name, what was read, the input as uint8 ``[H, W, 3]``.
        seen: what the encoder saw, uint8: the input, or what a transform made of it; all places are places in it.
        frames: of a CTC head, the best class and its probability for each column; else empty.
        tokens: names of the classes.
        maps: for each character a map ``[h, w]`` with maximum 1 of where it was looked at; empty when unknown.
        source: what the maps are: ``RCTC``, ``attention``, ``gradient`` ...
        boxes: for each character ``[cx, cy, w, h]`` as shares of the input, of a decoder that finds characters.
        points: of the modules that sample.
        grid: sampling grid of a transform, ``[h, w, 2]`` as shares of the input; None without one.
        fiducials: its control points ``[k, 2]`` as shares of the input; None without.
        valid: share of the input's width that is picture.
    """

    name: str
    decoded: Decoded
    image: np.ndarray
    frames: list[tuple[int, float]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    maps: list[np.ndarray] = field(default_factory=list)
    source: str = ""
    boxes: list[np.ndarray] = field(default_factory=list)
    points: list[Points] = field(default_factory=list)
    grid: np.ndarray | None = None
    fiducials: np.ndarray | None = None
    valid: float = 1.0

    @property
    def seen(self) -> np.ndarray:
        return self.image if self.grid is None else straightened(self.image, self.grid)


class _Heard:
    """What modules told during one pass: ``rows`` of (module name, key, tensor), and the feature map."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, Tensor]] = []
        self.features: Tensor | None = None

    def of(self, key: str, part: str = "") -> list[tuple[str, Tensor]]:
        return [(name, t) for name, k, t in self.rows if k == key and name.startswith(part)]


@contextmanager
def _listening(model: nn.Module) -> Iterator[_Heard]:
    heard, names, thread = _Heard(), {m: n for n, m in model.named_modules()}, threading.get_ident()

    def listen(module: nn.Module, key: str, tensor: Tensor) -> None:
        if threading.get_ident() == thread:  # a server may read with the same model at the same time
            heard.rows.append((names[module], key, tensor.detach().float().cpu()))

    def keep_features(_: Any, __: Any, output: Any) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        # a leaf of its own, so that gradients stop here and no encoder needs a backward pass
        heard.features = output.detach().requires_grad_(True)
        return heard.features

    with ExitStack() as hooks:
        for module in names:
            before = getattr(module, "_listener", None)
            module._listener = listen  # type: ignore[assignment]
            hooks.callback(setattr, module, "_listener", before)
        encoder = getattr(model, "encoder", None)
        if isinstance(encoder, nn.Module):
            hooks.callback(encoder.register_forward_hook(keep_features).remove)
        yield heard


def explain(recognizer: Any, image: Any, max_pixels: int = MAX_PIXELS, gradients: bool = True) -> Explanation:
    """Read one picture and tell where the model looked.

    Args:
        recognizer: a ``Recognizer`` that runs PyTorch.
        image: whatever the recogniser reads, one picture.
        gradients: use them where a decoder tells nothing.

    Raises:
        SampleError: the picture cannot be read. ConfigError: the model does not run in PyTorch.
    """
    model = recognizer.model
    item = Prepare(recognizer.preprocess, "RGB", max_pixels)(0, sources(image)[0])
    if isinstance(item, Failed):
        raise SampleError(item.reason)
    images = stack([item])
    device = next(model.parameters()).device
    with _LOCK, _listening(model) as heard, torch.set_grad_enabled(gradients):
        predictions = model(torch.from_numpy(images).to(device))
    texts = recognizer.decode(_detached(predictions))
    decoded = joined(texts) if item.image.ndim == 4 else texts[0]
    found = Explanation(item.name, decoded, visible(images[0]), valid=item.valid)
    columns = recognizer.frames(predictions, images.shape[-1])
    size = _map_size(heard)
    if columns is not None and item.image.ndim < 4:
        _alignment(found, recognizer, _branch(predictions, "ctc"))
    _look(found, heard, predictions, recognizer, item, size, columns)
    found.points = _points(heard, images.shape[-2:])
    grids, fiducials = heard.of("grid"), heard.of("fiducial")
    found.grid = grids[-1][1][0].numpy() if grids else None
    found.fiducials = fiducials[-1][1][0].numpy() if fiducials else None
    return found


def straightened(image: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The image sampled at ``grid`` [h, w, 2], (x, y) as shares of it; its border goes on outside."""
    places = grid * np.array([image.shape[1], image.shape[0]]) - 0.5  # pixel i has its centre at i + 0.5
    x, y = places.astype(np.float32).transpose(2, 0, 1)
    return cv2.remap(
        image, np.ascontiguousarray(x), np.ascontiguousarray(y), cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE
    )


def _detached(predictions: Any) -> Any:
    if isinstance(predictions, Mapping):
        return {k: _detached(v) for k, v in predictions.items()}
    if isinstance(predictions, (list, tuple)):
        return [_detached(v) for v in predictions]
    return predictions.detach() if isinstance(predictions, Tensor) else predictions


def _branch(predictions: Any, branch: str) -> Any:
    if isinstance(predictions, Mapping) and f"{branch}_pred" in predictions:
        predictions = predictions[f"{branch}_pred"]
    return predictions[-1] if isinstance(predictions, (list, tuple)) else predictions


def visible(image: np.ndarray) -> np.ndarray:
    """uint8 ``[H, W, 3]`` of an input (of the first of several windows)."""
    image = image[0] if image.ndim == 4 else image
    picture = np.rint((image * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return picture if picture.shape[2] == 3 else np.repeat(picture, 3, 2)


def _map_size(heard: _Heard) -> tuple[int, int] | None:
    """``(h, w)`` of the features."""
    features = heard.features
    if features is None:
        return None
    if features.ndim == 4:
        return int(features.shape[2]), int(features.shape[3])
    return map_of(int(features.shape[1]), [t.shape[1:] for _, t in reversed(heard.of("feature"))])


def map_of(count: int, features: Iterable[Sequence[int]]) -> tuple[int, int]:
    """``(h, w)`` of ``count`` places told row by row: that of the first of ``features``, shapes ``(C, h, w)`` or
    ``(N, C)``, with as many places; of one row where none has, as a sequence is."""
    maps = [(int(shape[1]), int(shape[2])) for shape in features if len(shape) == 3]
    return next(((h, w) for h, w in maps if h * w == count), (1, count))


def _alignment(found: Explanation, recognizer: Any, probabilities: Tensor) -> None:
    decoder = getattr(recognizer.post_process, "ctc_label_decode", recognizer.post_process)
    scores, ids = probabilities[0].detach().float().max(-1)
    found.frames = [(int(i), float(s)) for i, s in zip(ids.tolist(), scores.tolist())]
    found.tokens = [str(t) for t in decoder.tokens]


def _look(
    found: Explanation, heard: _Heard, predictions: Any, recognizer: Any, item: Item, size: Any, columns: int | None
) -> None:
    """Fill ``maps`` and ``boxes`` from the best that is known."""
    positions = found.decoded.positions
    if not positions or item.image.ndim == 4:
        return
    rows = heard.of("rows")
    if columns is not None and rows:
        found.maps, found.source = _from_rows(rows[-1][1][0].T.numpy(), found, columns), "RCTC's vertical attention"
        return
    boxes = heard.of("box")
    if boxes and columns is None and boxes[-1][1].shape[1] > max(positions):
        found.boxes, found.source = [boxes[-1][1][0, p].numpy() for p in positions], "boxes of the characters"
        return
    if columns is None and size is not None:
        weights = _from_attention(heard, max(positions) + 1, size)
        if weights is not None:
            found.maps, found.source = [_scaled(weights[p]) for p in positions], "the decoder's attention"
            return
    maps = _from_gradients(heard, _branch(predictions, recognizer.branch), positions, size)
    if maps:
        found.maps, found.source = maps, "the gradient of each character's probability"


def _scaled(values: np.ndarray) -> np.ndarray:
    top = float(values.max())
    return values / top if top > 0 else values


def _from_rows(attention: np.ndarray, found: Explanation, columns: int) -> list[np.ndarray]:
    """Of RCTC ``[H, W]``: the columns of a character's run, each with its vertical attention."""
    maps = []
    for start in found.decoded.positions:
        end = start + 1
        while end < columns and found.frames[end][0] == found.frames[start][0]:
            end += 1
        one = np.zeros_like(attention)
        one[:, start:end] = attention[:, start:end] * np.array([s for _, s in found.frames[start:end]])
        maps.append(_scaled(one))
    return maps


def _from_attention(heard: _Heard, steps: int, size: tuple[int, int]) -> np.ndarray | None:
    """``[T, h, w]`` of the last module of the decoder that told weights over the whole map, T >= ``steps``."""
    by_module: dict[str, list[np.ndarray]] = {}
    for name, tensor in heard.of("attn", "decoder"):
        weights = _over_map(tensor[0].numpy(), size)
        if weights is not None:
            by_module.setdefault(name, []).append(weights)
    for parts in reversed(list(by_module.values())):
        whole = max(parts, key=len)
        if len(whole) < steps:  # told step by step; a call may repeat the steps before it
            whole = np.concatenate([part[-1:] for part in parts])
        if len(whole) >= steps:
            return whole
    return None


def _over_map(weights: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """``[T, h, w]`` of weights ``[.., T, h, w]`` or ``[.., T, h * w]``, mean over what stands before."""
    h, w = size
    if weights.shape[-2:] == (h, w) and weights.ndim >= 3:
        maps = weights
    elif weights.shape[-1] == h * w:
        maps = weights.reshape(*weights.shape[:-1], h, w)
    else:
        return None
    maps = maps[None] if maps.ndim == 2 else maps
    return maps.reshape(-1, *maps.shape[-3:]).mean(0)


def _from_gradients(
    heard: _Heard, probabilities: Any, positions: list[int], size: tuple[int, int] | None
) -> list[np.ndarray]:
    """Gradient times activation at the feature map, its positive part; empty where no gradient arrives."""
    features = heard.features
    known = isinstance(probabilities, Tensor) and probabilities.requires_grad and probabilities.ndim == 3
    if features is None or size is None or not known or max(positions) >= probabilities.shape[1]:
        return []
    maps = []
    for p in positions:
        score = probabilities[0, p].max().clamp_min(1e-12).log()
        (gradient,) = torch.autograd.grad(score, features, retain_graph=True, allow_unused=True)
        if gradient is None:
            return []
        useful = gradient[0] * features[0].detach()
        useful = useful.sum(0) if features.ndim == 4 else useful.sum(-1).reshape(size)
        maps.append(_scaled(useful.clamp_min(0).float().cpu().numpy()))
    return maps


def _points(heard: _Heard, image: tuple[int, int]) -> list[Points]:
    """Sampling points of the encoder, and of a decoder that samples."""
    found: dict[str, Points] = {}
    origins: dict[str, np.ndarray] = {}
    for name, key, tensor in heard.rows:
        if key == "ref" and tensor.ndim == 2:  # the same for all pictures
            origins[name] = tensor.numpy()
        elif key == "loc" and tensor.ndim == 5:
            places = tensor[0].numpy()
            before = found.get(name)
            if before is not None and places.shape[1] == 1:  # told step by step
                places = np.concatenate((before.places, places), 1)
            found[name] = Points(
                name, places, origins.get(name) if places.shape[1] == len(origins.get(name, ())) else None
            )
    return list(found.values())
