"""What can be drawn of an image: each function turns what modules told into sections of a page.

After the figures of the papers: sampling points over the picture (Dai et al., "Deformable Convolutional Networks"; Xia
et al., "Vision Transformer with Deformable Attention"), attention per character (Xu et al., "Show, Attend and Tell"),
grid and rectified picture (Jaderberg et al., "Spatial Transformer Networks"; Shi et al., "ASTER").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from openrec.diagnose.told import Seen

Draw = Callable[[Any], None]  # onto a matplotlib axis
MOST_POINTS, MOST_CHARACTERS, MOST_BOXES = 400, 26, 60
ITSELF = ("self_attn", ".mixer", "w_atten_block.attn")  # of decoders: steps that look at steps, places at places
FIRES = 0.3  # score from which a query counts as one that found something


@dataclass
class Section:
    """A row of cells, (caption, draw), under a title; ``wide`` cells take the width of three."""

    title: str
    cells: list[tuple[str, Draw]]
    wide: bool = False


def sections(seen: Seen) -> Iterator[Section]:
    """All that can be drawn of this image, in the order of the flow: transform, encoder, decoder."""
    encoder = (encoder_points, encoder_attention, tables, scans)
    decoder = (columns, characters, decoder_points, glimpses, boxes)
    for draw in (transform, *encoder, *decoder):
        yield from draw(seen)


# ---- basics ----------------------------------------------------------------------------------------


def _over(picture: np.ndarray, weights: np.ndarray) -> Draw:
    """A map of weights over a grey picture."""

    def draw(axis: Any) -> None:
        height, width = picture.shape[:2]
        axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
        axis.imshow(weights, extent=(0, width, height, 0), cmap="inferno", alpha=0.6, interpolation="nearest")

    return draw


def _base(seen: Seen, module: str) -> np.ndarray:
    return seen.image if seen.sees_input(module) else seen.rectified


def _decodes(module: str) -> bool:
    """Whether a module asks for characters; DINO's decoder has encoder layers of its own, which ask for places."""
    return module.startswith("decoder") and ".encoder_layers." not in module


def _short(module: str) -> str:
    return module.replace("encoder.", "").replace("token_mixer.", "").replace("blocks.", "") or "model"


def _steps(seen: Seen, most: int) -> list[tuple[str, int]]:
    """(character, step) of what was read, as far as a map goes."""
    text, positions = seen.decoded.text, seen.decoded.positions
    return [(c, p) for c, p in zip(text, positions) if p < most][:MOST_CHARACTERS]


# ---- sections --------------------------------------------------------------------------------------


def transform(seen: Seen) -> Iterator[Section]:
    """Input with the sampling grid and the control points, rectified picture beside it."""
    points = [p for arrays in seen.of("fiducial").values() for p in arrays]
    thetas = [t for arrays in seen.of("theta").values() for t in arrays]
    for module, grids in seen.of("grid").items():
        grid = grids[-1]

        def draw(axis: Any, grid: np.ndarray = grid) -> None:
            height, width = seen.image.shape[:2]
            axis.imshow(seen.image)
            places = grid * np.array([width, height])
            for rows in (
                places[:: max(1, len(places) // 6)],
                places.transpose(1, 0, 2)[:: max(1, len(places[0]) // 12)],
            ):
                for line in rows:
                    axis.plot(line[:, 0], line[:, 1], color="deepskyblue", linewidth=0.6)
            for p in points[-1:]:
                axis.plot(p[:, 0] * width, p[:, 1] * height, "o", color="orange", markersize=3)

        moved = f", |theta - I| {np.linalg.norm(thetas[-1].reshape(2, 3) - np.eye(2, 3)):.2f}" if thetas else ""
        cells = [("input, grid, control points", draw), ("rectified", lambda axis: axis.imshow(seen.rectified))]
        yield Section(f"Transform ({module}){moved}", cells, wide=True)


def encoder_points(seen: Seen) -> Iterator[Section]:
    """Of every module of the encoder that samples: from each reference to where it is read, one colour a group."""
    cells = []
    for module, arrays in seen.of("loc").items():
        if _decodes(module):
            continue
        loc, refs = arrays[-1], seen.told.get((module, "ref"), [None])  # [M, Q, P, 2]
        out = ((loc < 0) | (loc > 1)).any(-1).mean()
        rms = [float(np.sqrt((o**2).mean())) for o in seen.told.get((module, "offset"), [])]
        caption = f"{_short(module)}: {100 * out:.0f} % outside" + (f", rms {rms[-1]:.2f} px" if rms else "")
        cells.append((caption, _arrows(_base(seen, module), loc, refs[-1])))
    if cells:
        yield Section("Sampling points of the encoder, arrows from where they start", cells, wide=True)


def _arrows(picture: np.ndarray, loc: np.ndarray, ref: np.ndarray | None) -> Draw:
    size = np.array([picture.shape[1], picture.shape[0]])
    groups, queries = loc.shape[:2]
    thin = np.linspace(0, queries - 1, min(queries, max(1, MOST_POINTS // groups))).astype(int)

    def draw(axis: Any) -> None:
        axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255, alpha=0.8)
        for group in range(groups):
            end = loc[group, thin].reshape(-1, 2) * size
            if ref is not None and len(ref) == queries:
                start = np.repeat(ref[thin], loc.shape[2], 0) * size
                axis.quiver(*start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1, width=0.002,
                            color=f"C{group % 10}", alpha=0.7)  # fmt: skip
            axis.plot(*end.T, ".", color=f"C{group % 10}", markersize=2.5)
        axis.set_xlim(-0.08 * size[0], 1.08 * size[0])
        axis.set_ylim(1.15 * size[1], -0.15 * size[1])

    return draw


def encoder_attention(seen: Seen) -> Iterator[Section]:
    """How much each place is looked at by all queries together (DAT's importance of keys)."""
    cells: list[tuple[str, Draw]] = []
    for module, arrays in seen.of("attn").items():
        weights = arrays[-1]
        if module.startswith("decoder") or weights.ndim != 3:
            continue
        importance, picture = weights.mean(0).sum(0), _base(seen, module)
        loc, looked = seen.told.get((module, "loc")), seen.told.get((module, "looked"))
        if looked is not None:  # in windows, put back where they were cut
            cells.append((_short(module), _over(picture, looked[-1])))
        elif loc is not None and loc[-1].shape[1] == len(importance):  # keys at points
            groups = weights.sum(1).reshape(len(loc[-1]), -1, len(importance)).mean(1)  # each has points of its own
            cells.append((_short(module), _circles(picture, loc[-1].mean(2), groups)))
        else:
            size = seen.map_size(module, len(importance))
            cells.append((_short(module), _over(picture, importance.reshape(size))))
    if cells:
        yield Section("Attention of the encoder: what all places together look at", cells, wide=True)


def _circles(picture: np.ndarray, places: np.ndarray, weights: np.ndarray) -> Draw:
    """``places [groups, K, 2]`` as large as ``weights [groups, K]``, one colour a group."""

    def draw(axis: Any) -> None:
        axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255, alpha=0.8)
        sizes = 60 * weights / max(float(weights.max()), 1e-9)
        for group, xy in enumerate(places * np.array([picture.shape[1], picture.shape[0]])):
            axis.scatter(*xy.T, s=sizes[group], color=f"C{group % 10}", alpha=0.7, linewidths=0)

    return draw


def tables(seen: Seen) -> Iterator[Section]:
    """What attention has learned of heads and displacements, whatever the image."""
    for key, title in (("mixing", "How re-attention mixes heads (columns) into heads (rows)"),
                       ("table", "What a displacement adds to the scores, head beside head")):  # fmt: skip
        cells = []
        for module, arrays in seen.of(key).items():
            heads = arrays[-1].reshape(-1, *arrays[-1].shape[-2:])
            gaps = np.pad(heads, ((0, 0), (0, 0), (0, int(len(heads) > 1))), constant_values=np.nan)
            caption = f"{_short(module)}: {heads.min():.2g} to {heads.max():.2g}"
            cells.append((caption, _heat(np.concatenate(list(gaps), -1))))
        if cells:
            yield Section(title, cells, wide=key == "table")


def _heat(values: np.ndarray) -> Draw:
    most = np.nanmax(np.abs(values))
    return lambda axis: axis.imshow(values, cmap="coolwarm", vmin=-most, vmax=most)


def scans(seen: Seen) -> Iterator[Section]:
    """Step sizes of the scans and what they leave of the state, mean over channels."""
    for key, title in (("dt", "Step sizes of the scans"), ("decay", "What a step leaves of the state, exp(dt A)")):
        cells = []
        for module, arrays in seen.of(key).items():
            values = arrays[-1].reshape(*arrays[-1].shape[:2], -1).mean(-1)
            caption = f"{_short(module)}: {values.min():.3g} to {values.max():.3g}"
            cells.append((caption, _over(_base(seen, module), values)))
        if cells:
            yield Section(title, cells, wide=True)


def columns(seen: Seen) -> Iterator[Section]:
    """RCTC's vertical attention, and the alignment: the best class of every column."""
    cells = [("column attention", _over(seen.rectified, rows[-1].T)) for rows in seen.of("rows").values()]
    if seen.columns is not None:
        cells.append(("CTC alignment", _alignment(seen)))
    if cells:
        yield Section("Columns", cells, wide=True)


def _alignment(seen: Seen) -> Draw:
    assert seen.columns is not None and seen.tokens is not None
    best, height = seen.columns.argmax(-1), seen.rectified.shape[0]
    width = seen.rectified.shape[1] / len(best)
    tokens, top = seen.tokens, seen.columns.max(-1)

    def draw(axis: Any) -> None:
        axis.imshow(seen.rectified)
        colors = np.where(best == 0, "lightgray", "tab:blue")
        centres = (np.arange(len(best)) + 0.5) * width
        axis.bar(centres, -height * top, bottom=2 * height, width=0.9 * width, color=colors)
        for x, number, before in zip(centres, best, [0, *best[:-1]]):
            if number and number != before:
                axis.text(x, 1.5 * height, tokens[number], ha="center", va="center", fontsize=7)
        axis.set_ylim(2 * height, 0)

    return draw


def characters(seen: Seen) -> Iterator[Section]:
    """For each character the map of its attention."""
    for module, arrays in seen.of("attn").items():
        if not module.startswith("decoder") or _of_points(seen, module):
            continue
        picture, parts = _base(seen, module), [a for a in arrays if a.ndim > 1]
        if not parts or module.endswith(ITSELF):
            continue
        maps = [seen.maps(module, p) for p in parts]
        whole = max(maps, key=len)
        if len(maps) > 1 and len(whole) < len(maps):  # told step by step; a call may repeat the steps before it
            whole = np.concatenate([m[-1:] for m in maps])
        cells = [(c, _over(picture, whole[p] / max(whole[p].max(), 1e-9))) for c, p in _steps(seen, len(whole))]
        if cells:
            yield Section(f"Attention for each character ({module})", cells)


def _of_points(seen: Seen, module: str) -> bool:
    """Whether a module's weights are those of its sampling points."""
    loc, attn = seen.told.get((module, "loc")), seen.told[(module, "attn")]
    return loc is not None and loc[-1].shape[:3] == attn[-1].shape


def decoder_points(seen: Seen) -> Iterator[Section]:
    """For each character the points that the decoder reads, as large as their weights; a cross where they start."""
    for module, arrays in seen.of("loc").items():
        if not _decodes(module):
            continue
        loc = (
            arrays[-1]
            if len(arrays) == 1 or arrays[-1].shape[1] > 1
            else np.concatenate([a[:, -1:] for a in arrays], 1)
        )
        weights = _alike(seen, module, "attn", loc.shape[:3])
        refs = _alike(seen, module, "ref", (loc.shape[1],), axis=0)
        picture = _base(seen, module)
        cells = [
            (
                c,
                _points(
                    picture, loc[:, p], None if weights is None else weights[:, p], None if refs is None else refs[p]
                ),
            )
            for c, p in _steps(seen, loc.shape[1])
        ]
        if cells:
            yield Section(f"Points read for each character ({module})", cells)


def _alike(seen: Seen, module: str, key: str, shape: tuple[int, ...], axis: int = 1) -> np.ndarray | None:
    """What was told beside the points, joined over steps as they are; None where it does not fit."""
    arrays = seen.told.get((module, key), [])
    if not arrays:
        return None
    joined = arrays[-1]
    if joined.shape[axis] == 1 and len(arrays) > 1:
        joined = np.concatenate([a.take([-1], axis) for a in arrays], axis)
    return joined if joined.shape[: len(shape)] == shape else None


def _points(picture: np.ndarray, loc: np.ndarray, weights: np.ndarray | None, ref: np.ndarray | None) -> Draw:
    size = np.array([picture.shape[1], picture.shape[0]])

    def draw(axis: Any) -> None:
        axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
        for head in range(len(loc)):
            s = 12.0 if weights is None else 6 + 40 * weights[head]
            axis.scatter(*(loc[head] * size).T, s=s, color=f"C{head % 10}", alpha=0.8, linewidths=0)
        if ref is not None:
            axis.plot(*(ref * size), "x", color="red", markersize=5)
        axis.set_xlim(-0.05 * size[0], 1.05 * size[0])
        axis.set_ylim(1.1 * size[1], -0.1 * size[1])

    return draw


def glimpses(seen: Seen) -> Iterator[Section]:
    """DRAW's grid of Gaussians for each character: from corner to corner, an ellipse of one sigma around each."""
    for module, arrays in seen.of("sigma").items():
        sigmas, grids = np.concatenate(arrays), np.concatenate(seen.told[(module, "box")])  # one step after the other
        picture = _base(seen, module)
        cells = [(c, _glimpse(picture, grids[p], sigmas[p])) for c, p in _steps(seen, len(sigmas))]
        if cells:
            yield Section(f"Grid and sigma of the Gaussians for each character ({module})", cells)


def _glimpse(picture: np.ndarray, grid: np.ndarray, sigma: np.ndarray) -> Draw:
    size = np.array([picture.shape[1], picture.shape[0]])
    centre, extent, around = grid[:2] * size, grid[2:] * size, 2 * sigma * size

    def draw(axis: Any) -> None:
        from matplotlib.patches import Ellipse, Rectangle

        axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
        axis.add_patch(Rectangle(tuple(centre - extent / 2), *extent, fill=False, edgecolor="orange"))
        for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            place = centre + corner * extent / 2
            axis.add_patch(Ellipse(tuple(place), *around, color="deepskyblue", alpha=0.4, linewidth=0))

    return draw


def boxes(seen: Seen) -> Iterator[Section]:
    """Boxes layer by layer from the start on, each with the way from the one before; those that became characters with
    their text and score in the last one. Then how many queries fire."""
    for module, arrays in seen.of("box").items():
        layers = [a for a in arrays if a.ndim == 2]
        if not layers:
            continue
        if len(layers[0]) == 1 and len(layers) > 1:  # told step by step
            layers = [np.concatenate(layers)]
        scores = [s for s in seen.told.get((module, "score"), []) if s.ndim == 1 and len(s) == len(layers[-1])]
        read = dict(zip(seen.decoded.positions, zip(seen.decoded.text, seen.decoded.char_scores)))
        picture, cells = _base(seen, module), []
        for number, layer in enumerate(layers):
            last = number == len(layers) - 1
            before = layers[number - 1] if number else layer
            cells.append(("last" if last else f"layer {number}",
                          _rectangles(picture, layer, before, read, scores[-1] if scores else None, last)))  # fmt: skip
        if scores:
            fire = f"score of the queries, {(scores[-1] > FIRES).sum()} of {len(scores[-1])} above {FIRES}"
            cells.append((fire, _histogram(scores[-1])))
        yield Section(f"Boxes ({module})", cells, wide=True)


def _histogram(scores: np.ndarray) -> Draw:
    def draw(axis: Any) -> None:
        axis.hist(scores, bins=20, range=(0, 1), color="tab:blue")
        axis.axvline(FIRES, color="gray", linewidth=0.8)
        axis.set_axis_on()
        axis.tick_params(labelsize=6)

    return draw


def _rectangles(
    picture: np.ndarray, layer: np.ndarray, before: np.ndarray, read: Any, scores: np.ndarray | None, named: bool
) -> Draw:
    height, width = picture.shape[:2]
    size = np.array([width, height])

    def draw(axis: Any) -> None:
        from matplotlib.patches import Rectangle

        axis.imshow(picture)
        order = np.argsort(-scores) if scores is not None else np.arange(len(layer))
        for q in dict.fromkeys([*order[:MOST_BOXES], *read]):
            if q >= len(layer):
                continue
            (x, y, w, h), known = layer[q], q in read
            strength = 1.0 if known else (float(scores[q]) if scores is not None else 0.3)
            axis.add_patch(Rectangle(((x - w / 2) * width, (y - h / 2) * height), w * width, h * height, fill=False,
                                     edgecolor=f"C{int(q) % 10}", alpha=max(0.3, min(1.0, strength)),
                                     linewidth=1.6 if known else 0.8))  # fmt: skip
            start, move = before[q, :2] * size, (layer[q, :2] - before[q, :2]) * size
            if np.abs(move).max() > 0.5:  # pixels
                axis.quiver(*start, *move, angles="xy", scale_units="xy", scale=1, width=0.003,
                            color=f"C{int(q) % 10}")  # fmt: skip
            if known and named:
                axis.text(x * width, (y - h / 2) * height, f"{read[q][0]} {read[q][1]:.2f}", fontsize=6, ha="center")

    return draw
