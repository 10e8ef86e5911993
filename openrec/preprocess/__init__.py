"""Per-sample transforms ("ops").

An op is constructed from the YAML and maps a sample, a dict with ``image``, ``label``, ``rng`` and
``training``, to a sample. It draws every random number from ``sample["rng"]``, so a sample depends
on (seed, epoch, index) alone, and raises ``SampleError`` when the sample cannot be used.

Images are uint8 arrays ``[H, W, 3]`` (``[H, W]`` for grey) between the ops, also for the ops with
PIL in their name: OpenCV decodes and warps several times faster than Pillow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openrec import registry
from openrec.errors import ConfigError

Op = Callable[[dict[str, Any]], Any]


def create_operators(op_list: Sequence[Any], where: str = "transforms", **context: Any) -> list[Op]:
    """Build the ops of a YAML ``transforms`` list: ``[{"DecodeImagePIL": {"img_mode": "RGB"}}, ...]``.

    Args:
        where: the list's place in the config, for messages.
        context: fills arguments that an op names and the YAML leaves open, such as ``charset``,
            ``max_text_length``; what the op's own entry says wins.

    Raises:
        ConfigError: not such a list, unknown op, unknown or missing argument.
    """
    if not isinstance(op_list, Sequence) or isinstance(op_list, str):
        raise ConfigError(f"{where}: expected a list of one-key mappings, got {op_list!r}.")
    ops = []
    for number, entry in enumerate(op_list):
        at = f"{where}[{number}]"
        if isinstance(entry, str):
            entry = {entry: None}
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise ConfigError(f"{at}: expected one op, such as {{DecodeImagePIL: {{img_mode: RGB}}}}, got {entry!r}.")
        (name, arguments), *_ = entry.items()
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ConfigError(f"{at}.{name}: expected a mapping of arguments or nothing, got {arguments!r}.")
        target = registry.resolve("op", name, at)
        ops.append(registry.call(target, arguments, f"{at}.{name}", **context))
    return ops


def transform(sample: Any, ops: Sequence[Op]) -> Any:
    """Apply ``ops`` one after the other; the last one may return something else than a dict."""
    for op in ops:
        sample = op(sample)
    return sample
