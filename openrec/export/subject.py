"""What is exported: one branch of a model that gives probabilities, and a card that says so."""

from __future__ import annotations

import copy
import json
import math
from bisect import bisect_left
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openrec import registry
from openrec.errors import ConfigError
from openrec.preprocess.geometry import bucket_size
from openrec.reading.loading import ModelCard
from openrec.recognizer import Recognizer

NO_GRAPH = ("SMTRDecoder",)  # their reading grows with the text in a way that no graph can hold
LONGEST_SIDE = 1280  # px, of models whose pictures may have any width
SMALLEST_SIDE = 16  # px


class Sizes(NamedTuple):
    """Sizes of pictures that a graph takes, in pixels; a side whose two numbers are equal is fixed."""

    height: tuple[int, int]
    width: tuple[int, int]

    def text(self, steps: tuple[int, int] = (1, 1)) -> str:
        """JSON for an export's metadata; ``steps``: px, sides are multiples of these."""
        return json.dumps({"height": [*self.height, steps[0]], "width": [*self.width, steps[1]]})

    def positions(self) -> int:
        """Most positions of a feature map: a quarter of each side, rounded up."""
        return math.ceil(self.height[1] / 4) * math.ceil(self.width[1] / 4)


class Subject(nn.Module):
    """Images ``[B, C, H, W]`` -> probabilities ``[B, T, classes]``.

    Args:
        recognizer: a PyTorch model; of a GTC model the branch that it reads with.

    Attributes:
        card: of a reader of the exported file.

    Raises:
        ConfigError: a decoder that cannot become a graph.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        self.model = copy.deepcopy(recognizer.model).cpu().eval().requires_grad_(False)
        self.card = ModelCard(copy.deepcopy(recognizer.card.config), recognizer.charset, recognizer.preprocess)
        decoder = getattr(self.model, "decoder", None)
        if hasattr(decoder, "infer_gtc"):
            self._keep_branch(decoder, recognizer.branch)
        name = self.card.config["Architecture"].get("Decoder", {}).get("name", "")
        if name in NO_GRAPH:
            raise ConfigError(
                f"export: {name} reads in a way that no graph can hold. Export the CTC branch of its GTC model "
                "(--branch ctc), or its weights (--to safetensors)."
            )

    def _keep_branch(self, decoder: Any, branch: str) -> None:
        """Leave one branch of a GTC decoder, and a config that describes what is left."""
        config, chosen = self.card.config, f"{branch}_decoder"
        own = dict(config["Architecture"]["Decoder"][chosen])
        guide = (config["PostProcess"].get("gtc_label_decode") or {"name": "CTCLabelDecode"}).copy()
        config["PostProcess"] = {"name": "CTCLabelDecode"} if branch == "ctc" else guide
        config["Architecture"]["Decoder"] = own
        model: Any = self.model
        model.decoder = getattr(decoder, chosen)
        # GTC averages the height for a plain CTC head, and reads a map row by row for a guide that wants a sequence.
        model.bridge = ("pool" if branch == "ctc" else "flatten") if model.decoder.needs == "seq" else ""

    def forward(self, images: Tensor) -> Tensor:
        found = self.model(images)
        if isinstance(found, dict):
            found = found["logits"]
        found = found[-1] if isinstance(found, (list, tuple)) else found
        return found[:, 0] if found.ndim == 4 else found

    def sizes(self, max_width: int | None = None) -> Sizes:
        """Sizes that its own preprocessing gives it, and every width up to the largest that it takes.

        Args:
            max_width: px; None: as wide as the position tables, else the widest picture (at least 320).

        Raises:
            ConfigError: ``max_width`` is more than the position tables hold, or no picture fits them.
        """
        shapes = self.card.preprocess.shapes()
        heights = [h for _, h in shapes] or [self._height()]
        limit = _limit(self.card.config)
        widest = max([320, *(w for w, _ in shapes)]) if shapes else LONGEST_SIDE
        if limit is not None:
            if limit[0] < max(heights):
                heights = [h for h in heights if h <= limit[0]] or [limit[0]]
            widest = limit[1]
        elif max_width is not None:
            widest = max_width
        heights, held = self._held(heights, widest)
        if max_width is not None and max_width > held:
            raise ConfigError(f"max_width: the model's position tables end at {held} px, got {max_width}.")
        widest = max_width or held
        least = min(SMALLEST_SIDE, widest)
        if shapes and hasattr(getattr(self.model, "decoder", None), "num_queries"):
            # it needs at least as many places as it has queries: only the sizes that it was made for
            least, widest = min(w for w, _ in shapes), max(w for w, _ in shapes)
        return Sizes((min(heights), max(heights)), (least, widest))

    def _held(self, heights: list[int], widest: int) -> tuple[list[int], int]:
        """Of ``heights`` and widths up to ``widest`` (px), those whose map the decoder's position table holds."""
        table = getattr(getattr(self.model, "decoder", None), "largest_map", None)
        if table is None:
            return heights, widest

        def fits(height: int, width: int) -> bool:
            rows, columns = self._map_of(height, width)
            return rows <= table[0] and columns <= table[1]

        known = [h for h in heights if fits(h, SMALLEST_SIDE)]
        if not known:
            raise ConfigError(
                f"export: a map of {self._map_of(min(heights), SMALLEST_SIDE)[0]} rows, but the decoder has positions "
                f"for {table[0]}x{table[1]} cells. Set Decoder.map_size, or Decoder.pos2d: False, and train again."
            )
        # the first width that does not fit, less one; maps grow with their pictures
        widths = range(SMALLEST_SIDE, widest + 1)
        return known, SMALLEST_SIDE - 1 + bisect_left(widths, True, key=lambda width: not fits(min(known), width))

    def _map_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of what the decoder gets for a picture of this size (px)."""
        model = self.model
        image = torch.zeros(1, int(self.card.config["Architecture"].get("in_channels", 3)), height, width)
        with torch.no_grad():
            for part in (getattr(model, name) for name in ("transform", "encoder") if hasattr(model, name)):
                image = part(image)
        return image.shape[2], image.shape[3]

    def _height(self) -> int:
        """Of pictures that an op resizes to some width."""
        sizes = self.card.preprocess.sizes or {}
        if "size" in sizes:
            return int(sizes["size"][1])
        heights = [getattr(op, "height", getattr(op, "base_h", 0)) for op in self.card.preprocess.ops]
        return next((int(h) for h in reversed(heights) if h), bucket_size(5)[1])

    def example(self, sizes: Sizes, batch: int = 2) -> Tensor:
        """A batch to trace with: inside all ranges, sides differ, and no window or stride divides the map's width."""
        channels = int(self.card.config["Architecture"].get("in_channels", 3))
        width = min(max(sizes.width[0], 92), sizes.width[1])
        generator = torch.Generator().manual_seed(0)
        return torch.rand(batch, channels, sizes.height[1], width, generator=generator) * 2 - 1


def _limit(config: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) px of the largest picture that the encoder's position tables hold."""
    if config["Architecture"].get("Transform"):
        return None
    encoder = config["Architecture"].get("Encoder") or {}
    target = registry.resolve("encoder", encoder["name"])
    ask = getattr(target, "largest_image", None)
    if ask is not None:
        return ask(encoder)
    known = registry.parameters(target)
    tables = encoder.get("use_pos_embed", known["use_pos_embed"].default) if "use_pos_embed" in known else True
    if tables and "max_sz" in known:
        size = encoder.get("max_sz", known["max_sz"].default)
        return int(size[0]), int(size[1])
    return None
