"""How far an accuracy can be trusted, given the number of samples it comes from."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(correct: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (E. B. Wilson, JASA 1927) of a share, 95 % by default; ``(0, 1)`` without samples.

    Unlike the share plus-minus its standard error it stays inside 0..1 and is right for shares near 1.
    """
    if total <= 0:
        return 0.0, 1.0
    share = correct / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
