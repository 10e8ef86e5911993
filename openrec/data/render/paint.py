"""Colours, textures, outline, shadow: from ink to a clean picture of a word."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

_TEXTURES, _TEXTURE_SHAPE = 48, (160, 480)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_THIRDS = np.arange(3) / 3
# Signs are red to yellow or blue more often than green or purple: cumulative share, first hue, width (0..1).
_HUES = ((0.45, -0.05, 0.22), (0.75, 0.52, 0.16), (0.88, 0.25, 0.2), (1.0, 0.0, 1.0))


@lru_cache(maxsize=1)
def textures() -> np.ndarray:
    """Prepared fields in [-1, 1], float32 ``[48, 160, 480]``: clouds, grain, stripes, bricks, blotches.

    Made from a fixed seed, hence equal in every process.
    """
    rng = np.random.default_rng(20261)
    return np.stack([_texture(rng, i % 6) for i in range(_TEXTURES)])


def _texture(rng: np.random.Generator, kind: int) -> np.ndarray:
    h, w = _TEXTURE_SHAPE
    y, x = np.mgrid[:h, :w].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    if kind in (0, 1):  # clouds: octaves of smooth noise
        field = _noise(rng, rng.uniform(20, 60)) + 0.5 * _noise(rng, 8) + 0.25 * _noise(rng, 3)
    elif kind == 2:  # rough grain: plaster, concrete
        field = _noise(rng, rng.uniform(1.2, 2.5)) + 0.5 * _noise(rng, 12)
    elif kind == 3:  # stripes: brushed metal, shutters, wood
        warp = 6 * _noise(rng, 40)
        field = np.sin((along + warp) * 2 * np.pi / rng.uniform(7, 40)) + 0.4 * _noise(rng, 2)
    elif kind == 4:  # bricks and tiles
        bh, bw = rng.integers(14, 40), rng.integers(30, 90)
        row = y // bh
        joint = (y % bh < 2) | ((x + (row % 2) * bw / 2) % bw < 2)
        shade = rng.uniform(-0.5, 0.5, (h // bh + 2, w // bw + 3)).astype(np.float32)
        field = shade[row.astype(int), ((x + (row % 2) * bw / 2) // bw).astype(int)] - joint * 1.0
        field = field + 0.2 * _noise(rng, 2)
    else:  # blotches: peeling paint, leaves, camouflage
        field = np.tanh(3 * _noise(rng, rng.uniform(6, 25))) + 0.3 * _noise(rng, 2)
    field = field - field.mean()
    return np.clip(field / (2 * field.std() + 1e-6), -1, 1).astype(np.float32)


def _noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    h, w = _TEXTURE_SHAPE
    step = max(1, int(sigma / 3))  # smooth fields are made small and enlarged
    small = rng.standard_normal((h // step + 2, w // step + 2)).astype(np.float32)
    field = np.asarray(cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / step), (w, h), interpolation=cv2.INTER_CUBIC))
    return (field - field.mean()) / (field.std() + 1e-6)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random piece of a prepared texture, float32 ``[height, width]`` in [-1, 1]."""
    field = textures()[int(rng.integers(_TEXTURES))]
    fh, fw = field.shape
    if height > fh or width > fw:
        return cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = int(rng.integers(fh - height + 1)), int(rng.integers(fw - width + 1))
    return field[y : y + height, x : x + width]


def colour(rng: np.random.Generator, luma: float, vivid: float) -> np.ndarray:
    """An RGB colour, float32 ``[3]`` in 0..255, of about the given luma; ``vivid`` 0..1."""
    band, place = rng.random(2)
    start, width = next((start, width) for share, start, width in _HUES if band < share)
    hue = start + width * place
    chroma = np.cos(2 * np.pi * (hue - _THIRDS)).astype(np.float32)
    chroma -= chroma @ _LUMA  # keeps the luma
    room = min(luma, 255 - luma) + 30
    return np.minimum(np.maximum(luma + chroma * np.float32(vivid * room * 1.1), 0), 255).astype(np.float32)


def colours(rng: np.random.Generator, contrast: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Background and text colour whose lumas lie ``contrast`` apart; the sign of the difference."""
    light_text = rng.random() < 0.55
    vivid = rng.beta(0.7, 1.1, 2)
    if rng.random() < 0.5:
        vivid[int(rng.integers(2))] *= 0.15  # one of the two is often white, grey or black
    low = rng.beta(1.2, 1.8) * (250 - contrast)
    dark, light = low, low + contrast
    background, text = (dark, light) if light_text else (light, dark)
    return colour(rng, background, vivid[0]), colour(rng, text, vivid[1]), 1.0 if light_text else -1.0


def decorate(rng: np.random.Generator, mask: np.ndarray, stroke: float, mild: float) -> list[np.ndarray]:
    """Planes to composite under the fill, bottom first: shadow or extrusion, outline. uint8, maybe none."""
    planes = []
    kind, amount = rng.random(2)
    wide = max(1, round(stroke * (0.25 + 0.5 * amount)))
    if kind < 0.16 * mild:  # outline
        planes.append(cv2.dilate(mask, _disc(wide)))
    elif kind < 0.30 * mild:  # shadow, soft or hard
        dx, dy = rng.integers(-wide, wide + 1), rng.integers(0, wide + 1)
        shadow = _shift(mask, int(dx) or 1, int(dy))
        planes.append(cv2.GaussianBlur(shadow, (0, 0), 0.4 * stroke) if amount < 0.6 else shadow)
    elif kind < 0.36 * mild:  # extrusion: the letter pulled along a diagonal
        depth = int(rng.integers(2, max(3, wide + 2)))
        side = 1 if amount < 0.5 else -1
        pulled = mask
        for step in range(1, depth + 1):
            pulled = np.maximum(pulled, _shift(mask, side * step, step))
        planes.append(pulled)
    return planes


@lru_cache(maxsize=16)
def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _shift(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    out = np.zeros_like(mask)
    h, w = mask.shape
    out[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = mask[
        max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)
    ]
    return out


def background(rng: np.random.Generator, height: int, width: int, base: np.ndarray, rough: float) -> np.ndarray:
    """float32 ``[height, width, 3]`` around the colour ``base``; ``rough`` is the texture's luma amplitude."""
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = base
    kind = rng.random()
    if kind < 0.75:
        tint = rng.uniform(0.6, 1.0, 3).astype(np.float32) * np.float32(rough)
        picture += texture(rng, height, width)[..., None] * tint
    if kind > 0.4:  # a gradient: light falling off, curved signs
        picture += (_ramp(rng, height, width) * np.float32(rng.uniform(0.3, 1.2) * rough))[..., None]
    return picture


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    gx, gy = rng.uniform(-1, 1, 2)
    x = np.linspace(-gx, gx, width, dtype=np.float32)
    y = np.linspace(-gy, gy, height, dtype=np.float32)
    return (x[None, :] + y[:, None]) * np.float32(0.7)


def border(rng: np.random.Generator, picture: np.ndarray, inside: np.ndarray) -> None:
    """Paint the end of the sign: a strip beside the box ``inside`` (x0, y0, x1, y1) in another colour."""
    h, w = picture.shape[:2]
    side, amount = int(rng.integers(4)), rng.random()
    other = colour(rng, float(rng.uniform(10, 245)), float(rng.beta(0.7, 1.5)))
    x0, y0, x1, y1 = inside
    if side == 0:
        picture[: max(0, int(y0 * amount))] = other
    elif side == 1:
        picture[min(h, int(np.ceil(y1 + (h - y1) * amount))) :] = other
    elif side == 2:
        picture[:, : max(0, int(x0 * amount))] = other
    else:
        picture[:, min(w, int(np.ceil(x1 + (w - x1) * amount))) :] = other


def compose(
    rng: np.random.Generator, picture: np.ndarray, planes: np.ndarray, text: np.ndarray, sign: float, rough: float
) -> np.ndarray:
    """Lay the planes (uint8 ``[H, W, n]``, bottom first, the fill last) over ``picture``.

    Args:
        text: RGB colour of the fill.
        sign: +1 when the text is lighter than the background; outlines go the other way.
        rough: luma amplitude of the fill's own gradient or texture; 0: flat.
    """
    alphas = planes.astype(np.float32) * np.float32(1 / 255)
    for i in range(planes.shape[2] - 1):
        luma = float(picture.mean()) - sign * float(rng.uniform(20, 140))
        under = colour(rng, float(np.clip(luma, 0, 255)), float(rng.beta(0.6, 1.5)))
        picture += alphas[..., i : i + 1] * (under - picture)
    fill: np.ndarray = text
    if rough > 0:
        h, w = picture.shape[:2]
        kind = rng.random()
        if kind < 0.3:
            fill = text + (_ramp(rng, h, w) * np.float32(rough))[..., None]
        elif kind < 0.5:
            fill = text + (texture(rng, h, w) * np.float32(rough))[..., None]
    alpha = alphas[..., -1:] * np.float32(rng.uniform(0.85, 1.0))
    picture += alpha * (fill - picture)
    return picture
