"""The last transform: from a mapping to the list of values that a batch is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openrec.errors import ConfigError


class KeepKeys:
    """Returns ``[sample[k] for k in keep_keys]``; losses and decoders read a batch by position."""

    def __init__(self, keep_keys: Sequence[str]) -> None:
        if not keep_keys or isinstance(keep_keys, str):
            raise ConfigError(f"KeepKeys.keep_keys: expected a list such as [image, label, length], got {keep_keys!r}.")
        self.keep_keys = list(keep_keys)

    def __call__(self, sample: dict[str, Any]) -> list[Any]:
        try:
            return [sample[key] for key in self.keep_keys]
        except KeyError as error:
            made = sorted(k for k in sample if k not in ("rng", "training"))
            raise ConfigError(
                f"KeepKeys.keep_keys: no transform makes {error}. The transforms made: {', '.join(made)}."
            ) from None
