"""Do the images of a config fit into the position tables of its encoder? Answered before any data is read.

An encoder class with such tables has ``largest_image(arguments)``, a data set that resizes by itself has
``largest_image(arguments, loader)``; both give (height, width) in px, the encoder's ``None`` means no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openrec import registry

Size = tuple[int, int]
FIXED_SIZE = ("RecTVResize", "SVTRResize")  # transforms whose ``image_shape`` is the size of every image


def image_problems(config: Mapping[str, Any], mode: str) -> list[str]:
    """One line for each data section with images larger than the encoder's tables."""
    architecture = config["Architecture"]
    encoder = architecture.get("Encoder")
    if not encoder or architecture.get("Transform"):  # a transform gives images a size of its own
        return []
    target = registry.resolve("encoder", encoder["name"])
    limit_of = getattr(target, "largest_image", None)
    limit = None if limit_of is None else limit_of(encoder)
    if limit is None:
        return []
    problems = []
    for name in ("Train", "Eval") if mode == "train" else ("Eval",):
        size = _largest(config[name]) if config.get(name) else None
        if size is not None and (size[0] > limit[0] or size[1] > limit[1]):
            positions = "n_position" in registry.parameters(target)  # of the map, a quarter of the image
            need = f"n_position: {-(-max(size) // 4)}" if positions else f"max_sz: {[*map(max, size, limit)]}"
            problems.append(
                f"{name}: images of up to {size[0]}x{size[1]} (height x width) are larger than the position tables of "
                f"{encoder['name']}, which end at {limit[0]}x{limit[1]}. Set Architecture.Encoder.{need}, or "
                f"make the images smaller ({name}.dataset.base_shape, loader.max_ratio, or image_shape of the resize)."
            )
    return problems


def _largest(section: Mapping[str, Any]) -> Size | None:
    """(height, width) of the largest image of a data section; ``None`` where only the data tell."""
    dataset = section["dataset"]
    of_dataset = getattr(registry.resolve("dataset", dataset["name"]), "largest_image", None)
    if of_dataset is not None:
        return of_dataset(dataset, section.get("loader") or {})
    for op in dataset.get("transforms") or ():
        name, arguments = next(iter(op.items())) if isinstance(op, Mapping) else (op, None)
        if name in FIXED_SIZE and arguments and arguments.get("image_shape"):
            height, width = arguments["image_shape"][-2:]
            return int(height), int(width)
    return None
