"""DINO as a recogniser: characters are detected, all at once, and read from left to right.

Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes" (ICLR 2023), as DTLR applies it to text (Baena et al.,
"General Detection-based Text Line Recognition", NeurIPS 2024). Two stages, mixed query selection, look forward twice
and contrastive denoising are DINO's; its public forms are IDEA-Research/DINO and detrex (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.classes import map_rows
from openrec.modeling.decoders.detr_blocks import (
    FFN,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    TransformerLayer,
)
from openrec.modeling.decoders.detr_coords import (
    PositionEmbeddingSine,
    box_refine,
    gen_encoder_output_proposals,
    get_sine_pos_embed,
)
from openrec.modeling.decoders.dino_denoising import Noisy, denoising_mask, noisy_queries
from openrec.modeling.decoders.true2d_decoder import pixel_centres
from openrec.modeling.layers import Linear, exact, flatten_map, guard
from openrec.modeling.record import record
from openrec.registry import with_defaults

ENCODER_ORDER = ("self_attn", "norm", "ffn", "norm")
DECODER_ORDER = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")
Shapes = list[tuple[int, int]]


class Start(NamedTuple):
    """Where the reading queries start."""

    content: Tensor  # [B, Q, D]
    boxes: Tensor  # [B, Q, 4], no gradient
    logits: Tensor | None = None  # of the proposals, [B, Q, n]
    proposals: Tensor | None = None  # their boxes, with gradient


class BoxHead(nn.Sequential):
    """Three layers to the four numbers by which a box moves, zero at the start."""

    def __init__(self, dim: int):
        super().__init__(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))

    def forward(self, x: Tensor) -> Tensor:
        """In float32 also under autocast: 8 bits of mantissa would move a box by a pixel."""
        for layer in self:
            x = exact(layer, x) if isinstance(layer, nn.Linear) else layer(x)
        return x

    def start_still(self) -> None:
        for parameter in self[-1].parameters():
            nn.init.zeros_(parameter)
            guard(parameter, decay=True)


class DINODecoder(nn.Module):
    """Map ``[B, C, H, W]`` -> ``[B, Q, n + 4]``: per query the classes' probabilities, then its box (cx, cy, w, h).

    In training a mapping for ``DINOLoss``: ``logits [layers, B, Q, n]`` and ``boxes [layers, B, Q, 4]``, of the
    proposals under ``proposals``, of the denoising queries under ``denoising``.

    Args:
        out_channels: n, the characters; there is no class for "nothing", every class has its own yes or no.
        hidden_dim: D, width of all tokens. n_heads: of attention. n_points: that a head reads on every level.
        num_queries: Q, most characters that can be found.
        num_levels: maps that are looked at: the encoder's, and halved ones.
        dec_layers: of the decoder. ffn_dim: inner width of the feed-forward parts.
        enc_layers: deformable encoder layers before the proposals; 0: the encoder's map as it is.
        two_stage: queries start at the cells that look most like a character; else at learned boxes.
        mixed_query: only the boxes come from those cells, contents are learned.
        look_forward_twice: the loss of a layer also reaches the box head of the layer before it.
        box_refine: every layer moves the box of the one before; else that of the start.
        share_heads: one class head and one box head for all layers.
        dn_number, dn_label_noise, dn_box_noise: contrastive denoising, see ``noisy_queries``; 0 turns it off.
        anchor_wh: size of a proposal on level 0, doubled per level, in parts of the image.
        pe_temperature: of the sine codes of positions.
        max_len: longest text.

    Raises:
        ConfigError: sizes that do not go together, fewer queries than characters, and in ``forward`` fewer cells.
    """

    needs = "2d"
    ignored_keys = ("read",)  # how to read is PostProcess.read

    @classmethod
    def map_problem(cls, arguments: Mapping[str, Any], size: tuple[int, int]) -> str:
        """Why a map of ``size`` (height, width) has too little to start the queries from, and the repair."""
        given = with_defaults(cls, arguments)
        shapes = [size]
        while len(shapes) < given["num_levels"]:
            shapes.append(((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2))
        return _few_cells(shapes, given["anchor_wh"], given["num_queries"]) if given["two_stage"] else ""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_dim: int = 256,
        num_queries: int = 100,
        num_levels: int = 2,
        n_heads: int = 8,
        n_points: int = 4,
        enc_layers: int = 2,
        dec_layers: int = 4,
        ffn_dim: int = 1024,
        dropout: float = 0.0,
        two_stage: bool = True,
        mixed_query: bool = True,
        look_forward_twice: bool = True,
        box_refine: bool = True,
        share_heads: bool = False,
        dn_number: int = 60,
        dn_label_noise: float = 0.5,
        dn_box_noise: float = 0.4,
        anchor_wh: Sequence[float] = (0.10, 0.80),
        pe_temperature: float = 20,
        max_len: int = 25,
    ):
        super().__init__()
        _check_sizes(hidden_dim, n_heads, num_queries, max_len, dec_layers, num_levels)
        self.classes, self.num_queries, self.num_levels = out_channels, num_queries, num_levels
        self.two_stage, self.mixed_query = two_stage, mixed_query
        self.look_forward_twice, self.box_refine = look_forward_twice and box_refine, box_refine
        self.noise = {"number": dn_number, "label_noise": dn_label_noise, "box_noise": dn_box_noise}
        self.anchor_wh, self.temperature = tuple(anchor_wh), pe_temperature
        groups = math.gcd(32 if hidden_dim >= 256 else 8, hidden_dim)
        self.neck = nn.ModuleList()
        for level in range(num_levels):
            conv = nn.Conv2d(hidden_dim, hidden_dim, 3, 2, 1) if level else nn.Conv2d(in_channels, hidden_dim, 1)
            self.neck.append(nn.Sequential(conv, nn.GroupNorm(groups, hidden_dim)))

        def layer(order: Sequence[str]) -> TransformerLayer:
            looking = MultiScaleDeformableAttention(hidden_dim, n_heads, num_levels, n_points, dropout)
            own = [MultiheadAttention(hidden_dim, n_heads, dropout, dropout)] if "cross_attn" in order else []
            ffn, norm = FFN(hidden_dim, ffn_dim, drop=dropout), nn.LayerNorm(hidden_dim)
            return TransformerLayer([*own, looking], [ffn], norm, order)

        self.encoder_layers = nn.ModuleList([layer(ENCODER_ORDER) for _ in range(enc_layers)])
        self.decoder_layers = nn.ModuleList([layer(DECODER_ORDER) for _ in range(dec_layers)])
        self.level_embed = nn.Parameter(torch.empty(num_levels, hidden_dim)) if enc_layers else None
        self.query_pos = nn.Sequential(Linear(2 * hidden_dim, hidden_dim), nn.ReLU(), Linear(hidden_dim, hidden_dim))
        self.norm = nn.LayerNorm(hidden_dim)
        heads = 1 if share_heads else dec_layers
        self.class_heads = nn.ModuleList([nn.Linear(hidden_dim, out_channels) for _ in range(heads)])
        self.box_heads = nn.ModuleList([BoxHead(hidden_dim) for _ in range(heads)])
        self.label_embedding = nn.Embedding(out_channels + 1, hidden_dim)
        self.query_content = nn.Embedding(num_queries, hidden_dim) if mixed_query or not two_stage else None
        self.reference_points: nn.Embedding | None = None
        if two_stage:
            self.proposal = nn.Sequential(Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim))
            self.proposal_class, self.proposal_box = nn.Linear(hidden_dim, out_channels), BoxHead(hidden_dim)
        else:
            self.reference_points = nn.Embedding(num_queries, 4)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()
            elif isinstance(module, BoxHead):
                module.start_still()
        for head in [*self.class_heads, *([self.proposal_class] if self.two_stage else [])]:
            nn.init.constant_(head.bias, -math.log((1 - 0.01) / 0.01))
            guard(head.bias)
        if self.query_content is not None:  # labels and learned boxes keep their normal start: they have to differ
            nn.init.xavier_uniform_(self.query_content.weight)
        if self.level_embed is not None:
            nn.init.normal_(self.level_embed)
        # Learned queries and codes of levels are no weights of a layer: decay would only make them alike.
        for tokens in (self.query_content, self.reference_points):
            guard(None if tokens is None else tokens.weight)
        guard(self.level_embed)

    def forward(self, x: Tensor, data: Sequence[Tensor] | None = None) -> Any:
        """``data`` (training): ``[label, length, boxes, has_box]`` of ``CharDetLabelEncode``."""
        memory, shapes = self.remember(x)
        start = self.start(memory, shapes)
        noisy = self._noisy(data) if self.training else None
        logits, boxes = self.detect(start, memory, shapes, noisy)
        if not self.training:
            return torch.cat((logits[-1].sigmoid().to(boxes.dtype), boxes[-1]), -1)
        return self._outputs(start, logits, boxes, noisy)

    def _noisy(self, data: Sequence[Tensor] | None) -> Noisy | None:
        if data is None or len(data) < 4:
            raise ConfigError(
                "DINODecoder: training needs label, length, boxes and has_box of CharDetLabelEncode, in this order. "
                "Set KeepKeys.keep_keys: [image, label, length, boxes, has_box]."
            )
        return noisy_queries(*data[:4], classes=self.classes, **self.noise)  # type: ignore[arg-type]

    def _outputs(self, start: Start, logits: Tensor, boxes: Tensor, noisy: Noisy | None) -> dict[str, Any]:
        count = 0 if noisy is None else noisy.labels.shape[1]
        if noisy is None:  # it still takes part in the loss, with no gradient: processes agree on who does
            logits = logits + 0.0 * self.label_embedding.weight.sum()
        out: dict[str, Any] = {"logits": logits[:, :, count:], "boxes": boxes[:, :, count:]}
        if start.logits is not None:
            out["proposals"] = {"logits": start.logits, "boxes": start.proposals}
        if noisy is not None:
            out["denoising"] = {"logits": logits[:, :, :count], "boxes": boxes[:, :, :count], "noisy": noisy}
        return out

    # -- the image -------------------------------------------------------------------------------------

    def remember(self, x: Tensor) -> tuple[Tensor, Shapes]:
        """The tokens of all levels ``[B, S, D]``, and the levels' sizes."""
        maps: list[Tensor] = []
        for layer in self.neck:
            maps.append(layer(maps[-1] if maps else x))
        shapes: Shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        memory = torch.cat([flatten_map(m) for m in maps], 1)
        if self.level_embed is None:
            return memory, shapes
        sine = PositionEmbeddingSine(memory.shape[-1] // 2, self.temperature, normalize=True)
        codes, centres = [], []
        for (h, w), level in zip(shapes, self.level_embed):
            cells = torch.zeros(1, h, w, dtype=torch.bool, device=x.device)
            codes.append(flatten_map(sine(cells)).to(level.dtype) + level)
            centres.append(pixel_centres(h, w, x.device, torch.promote_types(x.dtype, torch.float32)))
        reference = torch.cat(centres).view(1, -1, 1, 2).expand(x.shape[0], -1, self.num_levels, -1)
        position = torch.cat(codes, 1)
        for layer in self.encoder_layers:
            memory = layer(memory, query_pos=position, reference_points=reference, spatial_shapes=shapes)
        return memory, shapes

    def start(self, memory: Tensor, shapes: Shapes) -> Start:
        """Boxes and contents of the reading queries."""
        b = memory.shape[0]
        content = None if self.query_content is None else self.query_content.weight.expand(b, -1, -1)
        if self.reference_points is not None:
            assert content is not None
            return Start(content, self.reference_points.weight.float().sigmoid().expand(b, -1, -1))
        kept, anchors = gen_encoder_output_proposals(memory, None, shapes, anchor_wh=self.anchor_wh, largest=0.95)
        usable = anchors.isfinite().all(-1)  # [B, S]; the same for all images
        problem = _few_cells(shapes, self.anchor_wh, self.num_queries)
        if problem:
            raise ConfigError(f"DINODecoder: {problem}")
        tokens = self.proposal(kept)
        logits = exact(self.proposal_class, tokens)
        best = logits.detach().float().amax(-1).masked_fill(~usable, -1e9)
        pick = _first_best(best, self.num_queries).unsqueeze(-1)
        tokens = tokens.gather(1, pick.expand(-1, -1, tokens.shape[-1]))
        logits = logits.gather(1, pick.expand(-1, -1, self.classes))
        anchor = anchors.masked_fill(~usable.unsqueeze(-1), 0.0).gather(1, pick.expand(-1, -1, 4))
        boxes = (self.proposal_box(tokens).to(anchor.dtype) + anchor).sigmoid()
        return Start(tokens.detach() if content is None else content, boxes.detach(), logits, boxes)

    # -- the queries -----------------------------------------------------------------------------------

    def detect(self, start: Start, memory: Tensor, shapes: Shapes, noisy: Noisy | None) -> tuple[Tensor, Tensor]:
        """``logits`` and ``boxes [layers, B, P + Q, ...]``: denoising queries first, then the reading ones."""
        content, reference, mask = start.content, start.boxes, None
        if noisy is not None:
            embedded = self.label_embedding(noisy.labels).masked_fill(~noisy.filled.unsqueeze(-1), 0.0)
            count = noisy.labels.shape[1]
            content = torch.cat((embedded.to(content.dtype), content), 1)
            reference = torch.cat((noisy.boxes.to(reference.dtype), reference), 1)
            mask = denoising_mask(count, noisy.groups, self.num_queries, memory.device)
        reading = reference.shape[1] - self.num_queries  # number of the first query that reads
        record(self, "box", reference[:, reading:])
        before, all_logits, all_boxes = reference, [], []
        width = memory.shape[-1] // 2
        for number, layer in enumerate(self.decoder_layers):
            code = get_sine_pos_embed(reference, width, self.temperature).to(content.dtype)
            content = layer(
                content,
                memory,
                query_pos=self.query_pos(code),
                attn_masks=(mask, None),
                reference_points=reference.unsqueeze(2),
                spatial_shapes=shapes,
            )
            seen = self.norm(content)
            head = min(number, len(self.class_heads) - 1)
            all_logits.append(exact(self.class_heads[head], seen))  # type: ignore[arg-type]
            delta = self.box_heads[head](seen)
            all_boxes.append(box_refine(delta, before))
            record(self, "box", all_boxes[-1][:, reading:])
            if self.box_refine:
                # The predicted box goes on: without gradient into attention, with it into the next prediction.
                refined = box_refine(delta, reference)
                reference = refined.detach()
                before = refined if self.look_forward_twice else reference
        record(self, "score", all_logits[-1][:, reading:].sigmoid().amax(-1))
        return torch.stack(all_logits), torch.stack(all_boxes)

    # -- weights of another dictionary -----------------------------------------------------------------

    def map_characters(
        self, weights: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str], prefix: str = ""
    ) -> dict[str, Tensor]:
        """See ``map_rows``; boxes stay."""
        layers = ("class_heads", "proposal_class", "label_embedding")
        return map_rows(self, layers, weights, theirs, ours, prefix)


def _first_best(scores: Tensor, count: int) -> Tensor:
    """Places of the ``count`` highest of ``scores [B, S]``, highest first; of equal ones the first comes first."""
    if torch.compiler.is_compiling():  # ONNX has no stable sort, and a TopK that takes the first of equal ones
        return scores.topk(count, 1).indices
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _few_cells(shapes: Shapes, anchor_wh: Sequence[float], queries: int) -> str:
    """Usable are cells whose centres lie farther than a hundredth from the border: known from the sizes alone."""
    cells = 0
    for level, (h, w) in enumerate(shapes):
        if all(0.01 < min(0.95, size * 2**level) < 0.99 for size in anchor_wh):
            cells += math.prod(sum(0.01 < (i + 0.5) / n < 0.99 for i in range(n)) for n in (h, w))
    if cells >= queries:
        return ""
    return (
        f"{cells} usable cells in maps of {shapes}, but num_queries is {queries}. "
        "Set a smaller Decoder.num_queries, or give the encoder larger images."
    )


def _check_sizes(dim: int, heads: int, queries: int, longest: int, layers: int, levels: int) -> None:
    if dim % 4 or dim % heads:
        raise ConfigError(f"DINODecoder.hidden_dim: {dim} must be a multiple of 4 and of n_heads ({heads}).")
    if queries < longest:
        raise ConfigError(
            f"DINODecoder.num_queries: {queries} queries cannot find {longest} characters. Set num_queries to at "
            f"least max_len ({longest}), or lower max_len."
        )
    if layers < 1 or levels < 1:
        raise ConfigError("DINODecoder: dec_layers and num_levels must be at least 1.")
