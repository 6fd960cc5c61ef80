"""The models of the paper's table.

The paper says how many there are, 9 with LayerNorm and 5 with RMSNorm, from 160M to 35B parameters, of language, images
and video, and names one of them, Gemma 4 31B. The other thirteen are this project's choice to the same description.
"""

from __future__ import annotations

MODELS: dict[str, str] = {
    "pythia-160m": "layernorm",
    "pythia-1.4b": "layernorm",
    "pythia-6.9b": "layernorm",
    "pythia-12b": "layernorm",
    "opt-13b": "layernorm",
    "falcon-7b": "layernorm",
    "gpt-neox-20b": "layernorm",
    "dinov2-giant": "layernorm",
    "vjepa2-vitl": "layernorm",
    "llama-3.1-8b": "rmsnorm",
    "mistral-7b-v0.3": "rmsnorm",
    "qwen3-8b": "rmsnorm",
    "gemma-4-31b": "rmsnorm",
    "qwen3.5-35b-a3b": "rmsnorm",
}
"""Name in the zoo -> kind of its norms by the paper's list."""

SEVERAL_MODALITIES = "gemma-4-31b-multimodal"
"""Traced besides: where the paper saw the one collapse."""

HEADS = ("pythia-160m", "llama-3.1-8b")
"""An untied head of either kind, for Fisher information."""
