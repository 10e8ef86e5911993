"""The architecture of a shipped YAML at a size that takes a training step in a moment."""

from __future__ import annotations

from typing import Any

# What replaces the sizes of a full configuration, by name. A part that is small in any case needs no entry.
SMALLER: dict[str, dict[str, Any]] = {
    "DATEncoder": {
        "dims": [32, 32, 64],
        "num_heads": [1, 2, 4],
        "stage_spec": [["C"], ["L", "D"], ["D"]],
        "n_groups": [1, 2, 4],
    },
    "DINODecoder": {"hidden_dim": 32, "num_queries": 30, "dec_layers": 2, "enc_layers": 1, "ffn_dim": 48, "n_heads": 4},
    "DRAWAttnDecoder": {"hidden": 48, "embed_dim": 32},
    "HardAttnDecoder": {"hidden": 48, "attn_dim": 32, "embed_dim": 32},
    "NRTRDecoder": {"num_decoder_layers": 2},
    "SoftAttnDecoder": {"hidden": 48, "attn_dim": 32, "embed_dim": 32},
    "SATRNEncoder": {"d_model": 64, "n_layers": 2, "d_inner": 96},
    "True2DDecoder": {"d_model": 64, "n_layers": 2, "d_inner": 96},
    "True2DEncoder": {"d_model": 64, "n_layers": 2, "d_inner": 96},
}


def shrink(architecture: dict[str, Any]) -> None:
    """In place: the same parts and the same kinds of blocks, fewer and narrower."""
    for part in ("Transform", "Encoder", "Decoder"):
        config = architecture.get(part) or {}
        config |= SMALLER.get(config.get("name", ""), {})
    if "mixer" in architecture["Encoder"]:
        _shrink_stages(architecture["Encoder"])


def _shrink_stages(encoder: dict[str, Any]) -> None:
    """At most one block of a kind per stage."""
    mixer = [sorted(dict.fromkeys(stage), key=stage.index) for stage in encoder["mixer"]]
    encoder |= {"dims": [32, 32, 64], "num_heads": [1, 2, 4], "depths": [len(m) for m in mixer], "mixer": mixer}
    for key in ("num_convs", "kernel_sizes"):
        if key in encoder:
            encoder[key] = [stage[: len(m)] for stage, m in zip(encoder[key], mixer)]
    if encoder.get("last_stage"):
        encoder["out_channels"] = 64
