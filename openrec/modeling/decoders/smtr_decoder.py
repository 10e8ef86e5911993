"""SMTR: finds the next (or previous) character by matching a sub-string against the image.

Du et al., "Out of Length Text Recognition with Sub-String Matching", AAAI 2025; as the guide of SVTRv2 in Du et
al., ICCV 2025. Options and state-dict names are OpenOCR's (https://github.com/Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.token_steps import EOS, TokenEmbedding, greedy
from openrec.modeling.layers import dot_product_attention, drop_path, flatten_map, init_svtr, trunc_normal_
from openrec.modeling.record import record, recording

MAX_LONG_STEPS = 70  # of each direction in ``infer_aug``
KeysValues = tuple[Tensor, Tensor]


class CrossAttention(nn.Module):
    """Multi-head attention of queries ``[..., n, dim]`` to keys and values that ``project`` or ``split`` made."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"SMTRDecoder: in_channels {dim} cannot be split into {num_heads} heads of equal width.")
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)  # keys first
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """``[..., n, dim] -> [..., heads, n, dim / heads]``"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)

    def keys_values(self, kv: Tensor) -> KeysValues:
        keys, values = kv.chunk(2, -1)
        return self.split(keys), self.split(values)

    def forward(self, query: Tensor, memory: KeysValues) -> Tensor:
        q = self.split(self.q(query))
        return self.merge(dot_product_attention(q, *memory))

    def explicit(self, query: Tensor, memory: KeysValues, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same with the attention weights; for few keys per query. ``visible``: bool ``[..., n, keys]``."""
        scores = (self.split(self.q(query)) * self.scale) @ memory[0].transpose(-1, -2)
        if visible is not None:
            scores = scores.masked_fill(~visible.unsqueeze(-3), float("-inf"))
        weights = scores.softmax(-1)
        return self.merge(weights.to(memory[1].dtype) @ memory[1]), weights

    def merge(self, heads: Tensor) -> Tensor:
        return self.proj(heads.transpose(-2, -3).flatten(-2))


class MatchLayer(nn.Module):
    """A query reads its sub-string, then the image; the second step has no residual."""

    def __init__(self, dim: int, sub_heads: int, image_heads: int, drop_path_rate: float):
        super().__init__()
        self.normq1 = nn.LayerNorm(dim, eps=1e-6)
        self.normkv1 = nn.LayerNorm(dim, eps=1e-6)
        self.images_to_question_cross_attn = CrossAttention(dim, sub_heads)
        self.normq2 = nn.LayerNorm(dim, eps=1e-6)
        self.normkv2 = nn.LayerNorm(dim, eps=1e-6)
        self.question_to_images_cross_attn = CrossAttention(dim, image_heads)
        self.drop_path = drop_path(drop_path_rate)

    def image_memory(self, image: Tensor) -> KeysValues:
        attention = self.question_to_images_cross_attn
        return attention.keys_values(attention.kv(self.normkv2(image)))

    def forward(self, query: Tensor, prompt: Prompt, memory: KeysValues, maps: list[Tensor] | None) -> Tensor:
        b, n, d = query.shape
        sub = self.images_to_question_cross_attn
        kv = sub.kv(self.normkv1(prompt.rows))
        if prompt.index is not None:
            kv = F.embedding(prompt.index, kv)
        keys_values = sub.keys_values(kv.view(b * n, -1, 2 * d))
        read, _ = sub.explicit(self.normq1(query).view(b * n, 1, d), keys_values, prompt.visible.view(b * n, 1, -1))
        query = self.normq2(query + self.drop_path(read).view(b, n, d))
        if maps is None:
            return self.question_to_images_cross_attn(query, memory)
        query, weights = self.question_to_images_cross_attn.explicit(query, memory)
        maps.append(weights)
        return query


class Prompt:
    """Embedded sub-strings: ``rows [..., dim]``, ``index [B, n, K+1]`` into them (None: one to one), ``visible``."""

    def __init__(self, rows: Tensor, index: Tensor | None, visible: Tensor):
        self.rows, self.index, self.visible = rows, index, visible


class SMTRDecoder(nn.Module):
    """Tokens ``[B, S, C]`` -> the training loss, or probabilities ``[B, T, N + 2]`` (end, N characters, unused).

    Args:
        out_channels: N + 5, the token table of ``SMTRLabelEncode``.
        num_layer: number of matching layers.
        nextq2subs_head2: heads of the sub-string step; None: in_channels // 32.
        dynq2img_heads: heads of the image step.
        max_len: longest text; at most ``max_len + 2`` steps are decoded.
        ds: take the tokens as they are; False adds a learned position to exactly ``vis_seq`` tokens.
        pos2d: with ``ds``: take a map ``[B, C, H, W]`` up to ``max_size`` and add a learned position to it.
        sub_str_len: K, characters of a sub-string.
        next_mode: read from left to right; False reads from right to left and returns that order.
        infer_aug: evaluation reads one long image given as three crops [left, right, middle].
        bi_attn: with ``infer_aug``: return a list of parts and keep their attention in ``attn_maps``.
    """

    needs = "seq"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layer: int = 2,
        nextq2subs_head2: int | None = None,
        dynq2img_heads: int = 2,
        drop_path_rate: float = 0.1,
        max_len: int = 25,
        vis_seq: int = 50,
        ds: bool = False,
        pos2d: bool = False,
        max_size: Sequence[int] = (8, 32),
        sub_str_len: int = 5,
        next_mode: bool = True,
        infer_aug: bool = False,
        bi_attn: bool = False,
    ):
        super().__init__()
        if pos2d and not ds:
            raise ConfigError("SMTRDecoder: pos2d: True needs ds: True (positions of the map, not vis_seq).")
        self.vocab, self.pad, self.inf, self.inb = out_channels, out_channels - 1, out_channels - 3, out_channels - 2
        self.steps, self.sub_str_len, self.next_mode = max_len + 2, sub_str_len, next_mode
        self.infer_aug, self.bi_attn, self.pos2d = infer_aug, bi_attn, pos2d
        self.attn_maps: list[Tensor] = []
        d = in_channels
        self.vis_pos_embed: nn.Parameter | None = None
        if pos2d:
            self.needs = "2d"
            self.vis_pos_embed = nn.Parameter(torch.zeros(1, d, *max_size))
        elif not ds:
            self.vis_pos_embed = nn.Parameter(torch.zeros(1, vis_seq, d))
        self.next_token = nn.Parameter(torch.zeros(1, 1, 1, d))
        self.pre_token = nn.Parameter(torch.zeros(1, 1, 1, d))
        self.prompt_next_embed = nn.Parameter(torch.zeros(1, 1, sub_str_len + 1, d))
        self.prompt_pre_embed = nn.Parameter(torch.zeros(1, 1, sub_str_len + 1, d))
        self.char_embed = TokenEmbedding(out_channels, d)
        heads, rates = nextq2subs_head2 or max(d // 32, 1), torch.linspace(0, drop_path_rate, num_layer + 2).tolist()
        self.cmff_decoder = nn.ModuleList(MatchLayer(d, heads, dynq2img_heads, rates[i]) for i in range(num_layer))
        self.norm_pred = nn.LayerNorm(d, eps=1e-6)
        self.ques1_head = nn.Linear(d, out_channels - 3)
        for parameter in self.parameters(recurse=False):
            trunc_normal_(parameter)
        self.apply(init_svtr)

    def no_weight_decay(self) -> set[str]:
        return {"vis_pos_embed", "pre_token", "next_token", "char_embed"}

    def forward(self, x: Tensor, data: Sequence[Tensor] | None = None) -> Any:
        """``data`` (training): the batch without the image; ``data[1:7]`` are sub-strings, targets, counts.

        Returns in training ``[{"loss": scalar}, logits of the forward rows [B, n, N + 2]]``.
        """
        image = self._place(x)
        if self.training:
            if data is None or len(data) < 7:
                raise ConfigError("SMTRDecoder: training needs the labels of SMTRLabelEncode in the batch (KeepKeys).")
            return self._train(image, data[1:7])
        self.attn_maps = []
        memory = [layer.image_memory(image) for layer in self._layers()]
        if self.infer_aug:
            return self._read_long(memory, image)
        return self._read(memory, image.shape[0], image.device, self.next_mode)

    def _layers(self) -> list[MatchLayer]:
        return cast("list[MatchLayer]", list(self.cmff_decoder))

    def _place(self, x: Tensor) -> Tensor:
        """The image tokens with their positions, ``[B, S, C]``."""
        if self.vis_pos_embed is None:
            return x
        if self.pos2d:
            height, width = x.shape[-2:]
            if height > self.vis_pos_embed.shape[2] or width > self.vis_pos_embed.shape[3]:
                raise ConfigError(
                    f"SMTRDecoder: the map is {height} x {width}, larger than max_size "
                    f"{list(self.vis_pos_embed.shape[2:])}. Raise max_size."
                )
            return flatten_map(x + self.vis_pos_embed[:, :, :height, :width])
        if x.shape[1] != self.vis_pos_embed.shape[1]:
            raise ConfigError(
                f"SMTRDecoder: expected vis_seq = {self.vis_pos_embed.shape[1]} image tokens, got {x.shape[1]}. "
                "Set vis_seq, or ds: True for images of several sizes."
            )
        return x + self.vis_pos_embed

    # -- one look ------------------------------------------------------------------------------------

    def _prompt(self, subs: Tensor, backward: Tensor) -> Prompt:
        """Embed ``subs [B, n, K]``; ``backward``: bool, broadcast to ``[B, n]``.

        There are only 2 (K + 1) V different rows, far fewer than a training batch holds: then each is
        formed (and later projected) once and looked up.
        """
        size, vocab = self.sub_str_len + 1, self.vocab
        filler = torch.where(backward, self.inb, self.inf).unsqueeze(-1)
        visible = F.pad(subs != filler, (1, 0), value=True)  # [B, n, K+1]
        if subs.numel() <= 2 * size * vocab:
            return Prompt(self._embed(subs, backward), None, visible)
        every = torch.arange(vocab, device=subs.device).view(1, vocab, 1).expand(2, vocab, size - 1)
        table = self._embed(every, torch.tensor([[False], [True]], device=subs.device))
        index = (F.pad(subs, (1, 0)) + backward.unsqueeze(-1) * vocab) * size + torch.arange(size, device=subs.device)
        return Prompt(table.flatten(0, 2), index, visible)

    def _embed(self, subs: Tensor, backward: Tensor) -> Tensor:
        place = torch.where(backward[..., None, None], self.prompt_pre_embed, self.prompt_next_embed)
        return place + F.pad(self.char_embed(subs), (0, 0, 1, 0))

    def _match(self, subs: Tensor, backward: Tensor, memory: list[KeysValues], keep_maps: bool = False) -> Tensor:
        """``subs [B, n, K]`` -> logits ``[B, n, N + 2]``."""
        prompt = self._prompt(subs, backward)
        query = torch.where(backward.unsqueeze(-1), self.pre_token[0], self.next_token[0])
        query = query.expand(*subs.shape[:2], -1)
        maps: list[Tensor] | None = [] if keep_maps or recording(self) else None
        for layer, image in zip(self._layers(), memory):
            query = layer(query, prompt, image, maps)
        if maps and keep_maps:
            self.attn_maps.append(maps[-1].detach())
        if maps:
            record(self, "attn", maps[-1])  # [B, heads, n, image tokens]
        return self.ques1_head(self.norm_pred(query))

    # -- training ------------------------------------------------------------------------------------

    def _train(self, image: Tensor, data: Sequence[Tensor]) -> list[Any]:
        subs, following, count, subs_back, previous, count_back = data
        n, n_back = torch.stack((count.max(), count_back.max())).tolist()
        subs = torch.cat((subs[:, :n], subs_back[:, :n_back]), 1)
        target = torch.cat((following[:, :n], previous[:, :n_back]), 1)
        backward = (torch.arange(n + n_back, device=subs.device) >= n).unsqueeze(0)
        memory = [layer.image_memory(image) for layer in self._layers()]
        logits = self._match(subs, backward, memory)
        full = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(full.flatten(0, 1), target.flatten(), ignore_index=self.pad)
        return [{"loss": loss}, logits[:, :n]]

    # -- reading -------------------------------------------------------------------------------------

    def _read(self, memory: list[KeysValues], batch: int, device: torch.device, forward: bool) -> Tensor:
        """Greedy reading of a batch in one direction: ``[B, T, N + 2]``, in the order of reading."""
        backward = torch.tensor([[not forward]], device=device)
        window = torch.full((batch, self.sub_str_len), self.inf if forward else self.inb, device=device)

        def step(best: Tensor | None) -> Tensor:
            nonlocal window
            if best is not None:
                window = _shift(window, best, forward)
            return self._match(window.unsqueeze(1), backward, memory)[:, 0]

        return greedy(step, self.steps)

    def _read_long(self, memory: list[KeysValues], image: Tensor) -> Any:
        """Read the left crop forwards and the right one backwards, then the middle until both meet."""
        if image.shape[0] != 3:
            raise ConfigError(
                f"SMTRDecoder: infer_aug: True reads one image as three crops [left, right, middle], got "
                f"{image.shape[0]} images. Use batch size 1 and SliceResize or SliceTVResize."
            )
        size, limit = self.sub_str_len, min(MAX_LONG_STEPS, self.steps)
        sides = [(k[:2], v[:2]) for k, v in memory]
        left, right = self._read_sides(sides, limit, image.device)
        if left.shape[0] <= size or right.shape[0] <= size:
            return self._join([left, right.flip(0)])
        left, right = left[:-1], right[:-1].flip(0)  # the last one of each stands at the cut
        goal = right[:size].argmax(-1)
        window = left[-size:].argmax(-1)
        middle: list[Tensor] = []
        crop = [(k[2:], v[2:]) for k, v in memory]
        forward = torch.tensor([[False]], device=image.device)
        while len(middle) < limit:  # repeated characters may look like a meeting at once: one step always
            logits = self._match(window.view(1, 1, size), forward, crop, self.bi_attn)
            middle.append(logits[0, 0].softmax(-1))
            window = _shift(window, middle[-1].argmax(-1), True)
            if torch.equal(window, goal):
                break
        return self._join([left, torch.stack(middle), right[size:]])

    def _read_sides(self, memory: list[KeysValues], limit: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Probabilities ``[steps, N + 2]`` of both outer crops in the order of reading, without the end token."""
        size = self.sub_str_len
        windows = [torch.full((size,), filler, device=device) for filler in (self.inf, self.inb)]
        backward = torch.tensor([[False], [True]], device=device)
        recorded: tuple[list[Tensor], list[Tensor]] = ([], [])
        open_sides = [True, True]
        for _ in range(limit):
            probabilities = self._match(torch.stack(windows).unsqueeze(1), backward, memory, self.bi_attn)[:, 0]
            probabilities = probabilities.softmax(-1)
            best = probabilities.argmax(-1)
            for side, number in enumerate(best.tolist()):
                open_sides[side] &= number != EOS
                if open_sides[side]:
                    recorded[side].append(probabilities[side])
                    windows[side] = _shift(windows[side], best[side], side == 0)
            if not any(open_sides):
                break
        nothing = self.ques1_head.weight.new_zeros(0, self.vocab - 3)
        left, right = (torch.stack(steps) if steps else nothing for steps in recorded)
        return left, right

    def _join(self, parts: list[Tensor]) -> Any:
        if self.bi_attn:
            return [part.unsqueeze(0) for part in parts]
        whole = torch.cat(parts).unsqueeze(0)
        if whole.shape[1] == 0:  # both directions ended at once: an empty text, which has its end token
            whole = F.one_hot(whole.new_full((1, 1), EOS, dtype=torch.long), self.vocab - 3).to(parts[0].dtype)
        return whole


def _shift(window: Tensor, token: Tensor, forward: bool) -> Tensor:
    """The window ``[..., K]`` after one more character at its right (forward) or left end."""
    token = token.unsqueeze(-1)
    return torch.cat((window[..., 1:], token) if forward else (token, window[..., :-1]), -1)
