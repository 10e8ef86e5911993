"""Do the images of a config fit into the tables of its encoder, and their maps into those of its decoder?

Answered before any data is read, by what the classes tell of their arguments. All sizes are (height, width).

* ``largest_image(arguments)`` of an encoder with position tables, in px; ``None`` means no limit. Of a data set
  that resizes by itself, ``largest_image(arguments, loader)``.
* ``given_size(arguments)`` of a transform: px of the images that it gives; ``None``: that of its input.
* ``map_of(arguments, image)`` of an encoder: cells of the map that an image of that size leaves.
* ``map_problem(arguments, size)`` of a decoder: why it cannot read a map of that size, and the repair; or ``""``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openrec import registry
from openrec.config_schema import data_sections, op_parts

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
    for name in data_sections(mode):
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


def map_problems(config: Mapping[str, Any], mode: str) -> list[str]:
    """One line for each data section whose largest images leave a map that the decoder cannot read."""
    architecture = config["Architecture"]
    encoder, decoder, transform = (architecture.get(part) for part in ("Encoder", "Decoder", "Transform"))
    map_of = getattr(registry.resolve("encoder", encoder["name"]), "map_of", None)
    problem_of = getattr(registry.resolve("decoder", decoder["name"]), "map_problem", None)
    given_size = getattr(registry.resolve("transform", transform["name"]), "given_size", None) if transform else None
    if map_of is None or problem_of is None or (transform and given_size is None):
        return []
    given = given_size(transform) if given_size else None
    sizes = {name: _largest(config[name]) for name in data_sections(mode) if config.get(name)}
    problems = []
    for name, size in (sizes if given is None else {"Architecture.Transform": given}).items():
        problem = problem_of(decoder, map_of(encoder, size)) if size else ""
        if size and problem:
            problems.append(f"{name}: images of {size[0]}x{size[1]} (height x width) leave {problem}")
    return problems


def _largest(section: Mapping[str, Any]) -> Size | None:
    """(height, width) of the largest image of a data section; ``None`` where only the data tell."""
    dataset = section["dataset"]
    of_dataset = getattr(registry.resolve("dataset", dataset["name"]), "largest_image", None)
    if of_dataset is not None:
        return of_dataset(dataset, section.get("loader") or {})
    for op in dataset.get("transforms") or ():
        name, arguments = op_parts(op)
        if name in FIXED_SIZE and arguments.get("image_shape"):
            height, width = arguments["image_shape"][-2:]
            return int(height), int(width)
    return None
