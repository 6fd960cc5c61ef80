"""Text as calibration: files or the English that Python ships, cut into sequences of token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deadreckon.errors import InputError, UnreachableError
from deadreckon.forward.calibration import Batch, Calibration

Words = Callable[[int], Tensor]
"""Gives the next so many token ids of text, shape (n,), int64."""

_SEQUENCE = 512
_POSITIONS = ("max_position_embeddings", "max_target_positions")


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


def text_calibration(
    tokenizer: Any, texts: Sequence[str], config: Any, *, describe: str, batch_size: int
) -> Calibration:
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
    length = sequence_length(config, getattr(tokenizer, "model_max_length", None))

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
            yield on_both_sides(_padded(encoded[start : start + batch_size], config), config)

    return Calibration(describe, batches)


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The token ids of all texts in a row, without special tokens.

    Args:
        tokenizer: a transformers tokenizer.
        texts: documents.

    Returns:
        Shape (n,), int64.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return torch.tensor([token for sequence in encoded for token in sequence])


def stream(ids: Tensor) -> Words:
    """A stream that begins anew where the ids end.

    Args:
        ids: shape (n,), not empty.

    Returns:
        Gives the next so many.
    """
    begin = 0

    def take(count: int) -> Tensor:
        nonlocal begin
        taken = ids[(begin + torch.arange(count)) % len(ids)]
        begin += count
        return taken

    return take


def sequence_length(config: Any, tokenizer_limit: int | None = None) -> int:
    """Tokens a sequence: 512, or fewer where the model has fewer positions or the tokenizer says so.

    Args:
        config: the model's config.
        tokenizer_limit: the tokenizer's ``model_max_length``.

    Returns:
        The number.
    """
    text_config = config.get_text_config(decoder=True)
    positions = next((n for name in _POSITIONS if isinstance(n := getattr(text_config, name, None), int)), 0)
    # Some position tables keep rows for themselves (RoBERTa's first two): a tokenizer knows, a config does not say.
    limits = [_SEQUENCE, tokenizer_limit if tokenizer_limit else None]
    if positions > 2:
        limits.append(positions if tokenizer_limit and tokenizer_limit <= positions else positions - 2)
    return min(limit for limit in limits if limit)


def on_both_sides(batch: Mapping[str, Tensor], config: Any) -> Batch:
    """The batch, and for an encoder-decoder the same tokens on the decoder's side."""
    if not getattr(config, "is_encoder_decoder", False):
        return batch
    return {**batch, **{f"decoder_{name}": values for name, values in batch.items()}}


def _padded(sequences: list[list[int]], config: Any) -> dict[str, Tensor]:
    longest = max(map(len, sequences))
    pad = getattr(config.get_text_config(), "pad_token_id", None)
    ids = torch.full((len(sequences), longest), pad if isinstance(pad, int) and pad >= 0 else 0)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}
