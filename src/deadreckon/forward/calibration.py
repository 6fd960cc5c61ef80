"""The inputs of a forward pass: batches of a model's own keyword arguments, whatever its modality.

A calibration is anything that can be iterated more than once and yields keyword arguments; the measurement takes as
many as it needs. Twins get the same batches as the model they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deadreckon.errors import InputError, UnreachableError, UsageError

Batch = Mapping[str, Any]

_SEQUENCE = 512
_BEGINNING = 32


@dataclass(frozen=True)
class Calibration:
    """A stream of batches with its description.

    Attributes:
        describe: what the inputs are, for the record.
        batches: makes a fresh iterator over keyword arguments of the model's forward.
    """

    describe: str
    batches: Callable[[], Iterator[Batch]]


def placed(batch: Batch, device: torch.device) -> dict[str, Any]:
    """A batch's keyword arguments with tensors on `device`."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def first_row(batch: Batch) -> Batch:
    """The first sequence (of text, its beginning) or image of a batch; all of it where its tensors disagree."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    if len({value.shape[:1] for value in tensors.values()}) != 1 or any(not value.dim() for value in tensors.values()):
        return batch
    text = len({value.shape for value in tensors.values()}) == 1 and next(iter(tensors.values())).dim() == 2
    part = (slice(1), slice(_BEGINNING)) if text else slice(1)
    return {**batch, **{key: value[part] for key, value in tensors.items()}}


def given(batches: Iterable[Batch]) -> Calibration:
    """The user's own batches; those that were used are kept, so that every pass and every twin sees the same ones."""
    held: list[Batch] = []
    source = iter(batches)

    def replay() -> Iterator[Batch]:
        yield from held
        for batch in source:
            if not isinstance(batch, Mapping):
                raise UsageError(f"a batch is a {type(batch).__name__}: give mappings of the model's keyword inputs")
            held.append(batch)
            yield batch

    return Calibration("batches given by the caller", replay)


def english_text() -> str:
    """English prose that every CPython carries: the language reference's help topics (about 465,000 characters)."""
    from pydoc_data import topics

    return "\n".join(topics.topics.values())


def read_texts(paths: Sequence[Path]) -> list[str]:
    """The contents of text files.

    Args:
        paths: UTF-8 text files.

    Returns:
        One string a file.

    Raises:
        UnreachableError: a file cannot be read.
        InputError: a file is empty or not UTF-8.
    """
    texts = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first"
            ) from None
        except OSError as error:
            raise UnreachableError(f"{path}: {error.strerror}; name a readable text file") from None
        if not text.strip():
            raise InputError(f"{path}: the file holds no text; name one with some")
        texts.append(text)
    return texts


def text(tokenizer: Any, texts: Sequence[str], config: Any, *, describe: str, batch_size: int) -> Calibration:
    """Text cut into sequences as long as the model takes (512 tokens at most), special tokens included.

    Args:
        tokenizer: a transformers tokenizer.
        texts: documents; none is joined to another.
        config: the model's config.
        describe: what the text is, for the record.
        batch_size: sequences a batch.

    Returns:
        The calibration. Shorter last sequences are padded at the end and masked.
    """
    length = _sequence_length(config, getattr(tokenizer, "model_max_length", None))

    @cache  # every pass and every twin sees the same sequences, and cutting them takes longer than reading them
    def sequences() -> list[list[int]]:
        encoded: list[list[int]] = tokenizer(
            list(texts), truncation=True, max_length=length, return_overflowing_tokens=True, return_attention_mask=False
        )["input_ids"]
        # Full sequences first: batches are then padded only where the texts run out.
        return sorted(encoded, key=len, reverse=True)

    def batches() -> Iterator[Batch]:
        encoded = sequences()
        for start in range(0, len(encoded), batch_size):
            yield _with_decoder(_padded(encoded[start : start + batch_size], config), config)

    return Calibration(describe, batches)


def random_inputs(model: Any, *, seed: int, batch_size: int) -> Calibration:
    """Inputs drawn at random in the model's own shape: token ids, or images of standard normal pixels.

    Args:
        model: a transformers model; its `main_input_name` says which.
        seed: seed of the draw.
        batch_size: sequences or images a batch.

    Returns:
        An endless calibration.

    Raises:
        UsageError: the model takes something else; the caller must give batches.
    """
    config: Any = getattr(model, "config", None)
    name = getattr(model, "main_input_name", None)
    if name == "input_ids" and config is not None and hasattr(config.get_text_config(), "vocab_size"):
        shape, draw = _ids(config)
        what = "random token ids"
    elif name == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        shape = (getattr(config, "num_channels", 3), config.image_size, config.image_size)
        draw, what = torch.randn, "random pixels"
    else:
        raise UsageError(
            f"{type(model).__name__} takes {name or 'inputs of its own'}: pass batches=... of its keyword inputs"
        )

    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            # Row by row, so that the rows do not depend on how many make a batch.
            values = torch.stack([draw(shape, generator=generator) for _ in range(batch_size)])
            yield _with_decoder({name: values}, config) if name == "input_ids" else {name: values}

    return Calibration(f"{what}, seed {seed}", batches)


def _ids(config: Any) -> tuple[tuple[int, ...], Callable[..., Tensor]]:
    text_config = config.get_text_config()
    reserved = {
        value
        for part in (config, text_config)
        for key, value in part.to_dict().items()
        if isinstance(value, int) and key.endswith(("token_id", "token_index"))
    }
    # Special ids change what a model does (padding shifts positions, an image token wants an image).
    allowed = torch.tensor([i for i in range(text_config.vocab_size) if i not in reserved])

    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return allowed[torch.randint(allowed.numel(), shape, generator=generator)]

    return (_sequence_length(config, None),), draw


def _sequence_length(config: Any, tokenizer_limit: int | None) -> int:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # Some position tables keep rows for themselves (RoBERTa's first two): a tokenizer knows, a config does not say.
    limits = [_SEQUENCE, tokenizer_limit if tokenizer_limit else None]
    if isinstance(positions, int) and positions > 2:
        limits.append(positions if tokenizer_limit and tokenizer_limit <= positions else positions - 2)
    return min(limit for limit in limits if limit)


def _padded(sequences: list[list[int]], config: Any) -> dict[str, Tensor]:
    longest = max(map(len, sequences))
    pad = getattr(config.get_text_config(), "pad_token_id", None)
    ids = torch.full((len(sequences), longest), pad if isinstance(pad, int) and pad >= 0 else 0)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _with_decoder(batch: dict[str, Tensor], config: Any) -> Batch:
    """An encoder-decoder reads the same tokens on both sides."""
    if not getattr(config, "is_encoder_decoder", False):
        return batch
    return {**batch, **{f"decoder_{name}": values for name, values in batch.items()}}
