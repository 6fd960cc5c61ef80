"""Inputs drawn at random in a model's own shape, whatever its modality, from what its config and signature say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.calibration import Batch, Calibration, batched
from deadreckon.forward.multimodal import Weaver
from deadreckon.forward.shapes import IMAGES, SOUNDS, Draw, Row, drawn
from deadreckon.forward.text import Words, on_both_sides, sequence_length

_WHAT = {**dict.fromkeys(IMAGES, "pixels"), "input_features": "spectrograms", "input_values": "sound"}
_PLURAL = {"image": "images", "audio": "sounds"}


def random_inputs(model: nn.Module, *, seed: int, batch_size: int) -> Calibration:
    """Inputs drawn at random in the model's own shape: token ids, standard normal pixels, spectrograms, waveforms.

    Args:
        model: a transformers model; its `main_input_name`, signature and config say which. A model that puts images or
            sounds among its tokens gets sequences of both.
        seed: seed of the draw.
        batch_size: sequences or images a batch; fewer where they are large.

    Returns:
        An endless calibration.

    Raises:
        UsageError: the model takes something else; the caller must give batches.
    """
    what, draw = _recipe(model)

    def batches() -> Iterator[Batch]:
        def rows() -> Iterator[Row]:
            # Row by row, so that the rows do not depend on how many make a batch.
            generator = torch.Generator().manual_seed(seed)
            while True:
                yield draw(generator)

        yield from batched(rows(), batch_size, model)

    return Calibration(f"random {what}, seed {seed}", batches)


def plain_ids(config: Any) -> Callable[[int, torch.Generator], Tensor]:
    """A draw of token ids among those that mean nothing special.

    Args:
        config: the model's config.

    Returns:
        Takes a number and a generator; returns that many ids, shape (n,), int64.
    """
    text_config = config.get_text_config(decoder=True)
    reserved = {
        value
        for part in (config, text_config)
        for key, value in part.to_dict().items()
        if isinstance(value, int) and key.endswith(("token_id", "token_index"))
    }
    # Special ids change what a model does (padding shifts positions, an image token wants an image).
    allowed = torch.tensor([i for i in range(text_config.vocab_size) if i not in reserved])
    return lambda count, generator: allowed[torch.randint(allowed.numel(), (count,), generator=generator)]


def random_words(config: Any, seed: int) -> Words:
    """A stream of random token ids among those that mean nothing special.

    Args:
        config: the model's config.
        seed: seed of the draw.

    Returns:
        Gives the next so many.
    """
    draw, generator = plain_ids(config), torch.Generator().manual_seed(seed)
    return lambda count: draw(count, generator)


def _recipe(model: nn.Module) -> tuple[str, Draw]:
    config: Any = getattr(model, "config", None)
    name = getattr(model, "main_input_name", None)
    takes = inspect.signature(model.forward).parameters
    if config is not None and name == "input_ids" and _has_vocabulary(config):
        return _among_tokens(model, config)
    draw = None if config is None or name not in _WHAT else drawn(config, name, takes)
    if draw is None:
        raise UsageError(
            f"{type(model).__name__} takes {name or 'inputs of its own'}: pass batches=... of its keyword inputs"
        )
    if "decoder_input_ids" not in takes or not _has_vocabulary(config):
        return _WHAT[str(name)], draw
    ids, length = plain_ids(config), sequence_length(config)
    return f"{_WHAT[str(name)]} and token ids", lambda generator: {
        **draw(generator),
        "decoder_input_ids": ids(length, generator)[None],
    }


def _among_tokens(model: nn.Module, config: Any) -> tuple[str, Draw]:
    ids, length = plain_ids(config), sequence_length(config)

    def text(generator: torch.Generator) -> Row:
        return dict(on_both_sides({"input_ids": ids(length, generator)[None]}, config))

    takes = inspect.signature(model.forward).parameters
    for modality, inputs in (("image", IMAGES[:1]), ("audio", SOUNDS)):
        name = next((n for n in inputs if n in takes), None)
        draw = None if name is None else drawn(config, name, takes)
        weaver = Weaver.of(model, modality)
        if draw is not None and weaver is not None:
            what, woven = f"token ids and {_PLURAL[modality]}", _woven(weaver, draw, ids)
            try:
                woven(torch.Generator())
            except UsageError:  # what the model makes of them cannot be told: its text alone
                continue
            return what, woven
        if draw is not None and weaver is None and hasattr(model, f"get_{modality}_features"):
            return f"token ids and {_PLURAL[modality]}", _beside(text, draw)
    return "token ids", text


def _woven(weaver: Weaver, draw: Draw, ids: Callable[[int, torch.Generator], Tensor]) -> Draw:
    return lambda generator: weaver.row(draw(generator), lambda count: ids(count, generator))


def _beside(text: Draw, draw: Draw) -> Draw:
    """For two towers side by side."""
    return lambda generator: {**text(generator), **draw(generator)}


def _has_vocabulary(config: Any) -> bool:
    return isinstance(getattr(config.get_text_config(decoder=True), "vocab_size", None), int)
