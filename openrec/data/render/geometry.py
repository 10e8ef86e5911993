"""Where a point of the flat text lands in the picture, and back.

Flat text -> bend (arc or wave, both with a closed inverse) -> 3x3 homography (squeeze, shear,
rotation, perspective, then scale and shift into the crop). One remap applies it all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from openrec.errors import ConfigError

_GRID: dict[tuple[int, int], np.ndarray] = {}


@dataclass
class Warp:
    """Geometry of one word; lengths in pixels of the flat mask.

    Attributes:
        centre: x, y of the text's middle in the mask.
        radius: of the arc on which the baseline lies; positive bends the ends down; 0: straight.
        wave: amplitude, wave number (1/px) and phase (rad); amplitude 0: none.
        matrix: float64 ``[3, 3]``, bent text -> picture.
    """

    centre: tuple[float, float]
    radius: float = 0.0
    wave: tuple[float, float, float] = (0.0, 0.0, 0.0)
    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))

    @property
    def bent(self) -> bool:
        return self.radius != 0 or self.wave[0] != 0

    def forward(self, points: np.ndarray) -> np.ndarray:
        """Mask points ``[..., 2]`` -> picture points ``[..., 2]``, float64."""
        x, y = points[..., 0] - self.centre[0], points[..., 1] - self.centre[1]
        if self.radius:
            angle, r = x / self.radius, self.radius - y
            x, y = r * np.sin(angle), self.radius - r * np.cos(angle)
        if self.wave[0]:
            y = y + self.wave[0] * np.sin(self.wave[1] * x + self.wave[2])
        m = self.matrix
        w = m[2, 0] * x + m[2, 1] * y + m[2, 2]
        return np.stack([(m[0, 0] * x + m[0, 1] * y + m[0, 2]) / w, (m[1, 0] * x + m[1, 1] * y + m[1, 2]) / w], -1)

    def remap(self, image: np.ndarray, width: int, height: int) -> np.ndarray:
        """The flat ``image`` (uint8) as seen in a picture of ``width`` x ``height``; 0 outside."""
        if not self.bent:
            shift = np.array([[1, 0, -self.centre[0]], [0, 1, -self.centre[1]], [0, 0, 1.0]])
            return cv2.warpPerspective(image, self.matrix @ shift, (width, height), flags=cv2.INTER_LINEAR)
        p = np.linalg.inv(self.matrix).astype(np.float32) @ _grid(width, height)
        x, y = p[0] / p[2], p[1] / p[2]
        if self.wave[0]:
            y = y - np.float32(self.wave[0]) * np.sin(np.float32(self.wave[1]) * x + np.float32(self.wave[2]))
        if self.radius:
            sign = np.float32(math.copysign(1, self.radius))
            down = np.float32(self.radius) - y
            angle = np.arctan2(x * sign, down * sign)
            y = np.float32(self.radius) - sign * np.sqrt(x * x + down * down)
            x = np.float32(self.radius) * angle
        x = (x + np.float32(self.centre[0])).reshape(height, width)
        y = (y + np.float32(self.centre[1])).reshape(height, width)
        return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Axis-aligned boxes ``[n, 4]`` in the picture around flat boxes ``[n, 4]``, float64."""
        points = self.forward(outline(boxes))
        return np.concatenate([points.min(1), points.max(1)], -1)

    def then(self, scale_x: float, scale_y: float, x: float, y: float) -> Warp:
        """This warp, followed by a scale and a shift in the picture."""
        fit = np.array([[scale_x, 0, x], [0, scale_y, y], [0, 0, 1.0]])
        return Warp(self.centre, self.radius, self.wave, fit @ self.matrix)


def outline(boxes: np.ndarray) -> np.ndarray:
    """Corners and middles of the horizontal edges, ``[n, 4] -> [n, 6, 2]``."""
    x0, y0, x1, y1 = boxes.T.astype(np.float64)
    middle = (x0 + x1) / 2
    return np.stack([x0, y0, middle, y0, x1, y0, x0, y1, middle, y1, x1, y1], -1).reshape(-1, 6, 2)


def _grid(width: int, height: int) -> np.ndarray:
    """Homogeneous pixel coordinates, float32 ``[3, height * width]``."""
    found = _GRID.get((width, height))
    if found is None:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        found = np.stack([x.ravel(), y.ravel(), np.ones(width * height, np.float32)])
        if len(_GRID) > 256:
            _GRID.clear()
        _GRID[width, height] = found
    return found


@dataclass(frozen=True)
class Pose:
    """How far words are turned and bent on purpose, in degrees; None: as ``draw_warp`` draws it.

    Attributes:
        rotation: range of the angle by which a word is turned, either way.
        curvature: range of the arc that its baseline spans, either way; a word of few characters is bent less.
    """

    rotation: tuple[float, float] | None = None
    curvature: tuple[float, float] | None = None

    @classmethod
    def checked(cls, rotation: Sequence[float] | None, curvature: Sequence[float] | None) -> Pose | None:
        """None when neither is asked for.

        Raises:
            ConfigError: not [least, most] degrees, more than 90 (rotation) or 180 (curvature).
        """
        for name, given, most in (("rotation", rotation, 90), ("curvature", curvature, 180)):
            if given is not None and not (len(given) == 2 and 0 <= given[0] <= given[1] <= most):
                raise ConfigError(f"{name}: expected [least, most] within 0 to {most} degrees, got {list(given)}.")
        ranges = [None if given is None else (float(given[0]), float(given[1])) for given in (rotation, curvature)]
        return None if ranges == [None, None] else cls(*ranges)


def _either_way(rng: np.random.Generator, degrees: tuple[float, float]) -> float:
    """A random angle in radians."""
    return math.radians(rng.uniform(*degrees)) * (1 if rng.random() < 0.5 else -1)


def draw_warp(
    rng: np.random.Generator,
    centre: tuple[float, float],
    half: tuple[float, float],
    strength: float,
    pose: Pose | None = None,
    without: frozenset[str] = frozenset(),
) -> Warp:
    """A random warp for text of half-size ``half`` (px) around ``centre``.

    ``strength`` 0..1 scales every distortion; at 1 about one word in six is bent. ``pose`` replaces rotation and bend,
    whatever the strength. ``without``: see ``openrec.data.render.switches``.
    """
    a, b = half
    kind, slant, turn, tilt_x, tilt_y, bend, phase = rng.random(7)
    radius, wave = 0.0, (0.0, 0.0, 0.0)
    if kind < 0.12 * strength and a > 2 * b:  # long enough for a curve to be seen
        radius = a / (0.25 + 0.5 * bend * strength) * (1 if phase < 0.75 else -1)
        if abs(radius) < 3 * b:
            radius = math.copysign(3 * b, radius)
    elif kind < 0.17 * strength and a > 2 * b:
        wave = (b * (0.1 + 0.35 * bend) * strength, math.pi * (0.6 + 0.8 * bend) / a, 2 * math.pi * phase)
    normal = rng.standard_normal(3)
    # Long rotated words fill a square: the longer, the less they may turn.
    limit = min(0.5, 1.0 * b / max(a, 1.0) + 0.05)
    angle = float(np.clip(normal[0] * 0.14 * strength, -limit, limit)) if turn < 0.7 else 0.0
    shear = float(np.clip(normal[1] * 0.15 * strength, -0.4, 0.4)) if slant < 0.5 else 0.0
    if pose and pose.curvature:
        arc, wave = _either_way(rng, pose.curvature), (0.0, 0.0, 0.0)
        # Below three half-heights the feet of the letters would run into each other.
        radius = math.copysign(max(2 * a / abs(arc), 3 * b), arc) if arc else 0.0
    if pose and pose.rotation:
        angle = _either_way(rng, pose.rotation)
    g = (tilt_x - 0.5) * 0.5 * strength / max(a, 1.0)
    h = (tilt_y - 0.5) * 0.3 * strength / max(b, 1.0)
    if "curves" in without:
        radius, wave = 0.0, (0.0, 0.0, 0.0)
    if "perspective" in without:
        angle = shear = g = h = 0.0
    c, s = math.cos(angle), math.sin(angle)
    linear = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ np.array([[1, shear, 0], [0, 1, 0], [g, h, 1.0]])
    return Warp(centre, radius, wave, linear)
