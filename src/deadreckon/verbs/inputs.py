"""Which inputs a model is run on: the caller's own, text, images, sound, or random ones of its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from deadreckon.errors import UsageError
from deadreckon.forward.audio import EXTENSIONS as SOUND_FILES
from deadreckon.forward.audio import audio_calibration
from deadreckon.forward.calibration import Calibration, given
from deadreckon.forward.images import EXTENSIONS as IMAGE_FILES
from deadreckon.forward.images import image_calibration
from deadreckon.forward.load import Loaded
from deadreckon.forward.media import find_media
from deadreckon.forward.random_inputs import random_inputs, random_words
from deadreckon.forward.text import Words, english_text, read_texts, stream, text_calibration, token_ids

DATA = ("auto", "text", "images", "audio", "random")
_FILES = ("text", "images", "audio")
_ROWS = 64  # rows a batch is made of where memory decides how many are run at a time


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """The options of a verb that decide what its model is run on; see `deadreckon.measure`."""

    batches: Iterable[Mapping[str, Any]] | None = None
    data: str = "auto"
    text: Sequence[str | Path] = ()
    images: Sequence[str | Path] = ()
    audio: Sequence[str | Path] = ()
    skip_bad: bool = False
    tokenizer: Any = None
    processor: Any = None
    batch_size: int | None = None

    @property
    def chosen(self) -> str:
        """The data that these options ask for: what `data` says, or else what files were given.

        Returns:
            One of `DATA`; ``auto`` where nothing was said.

        Raises:
            UsageError: options that contradict each other.
        """
        files = [name for name in _FILES if getattr(self, name)]
        if self.data not in DATA:
            raise UsageError(f"unknown data {self.data!r}: choose {', '.join(DATA[:-1])} or {DATA[-1]}")
        data = files[-1] if self.data == "auto" and files else self.data
        allowed = {data, "text"} if data in _FILES else set()
        if extra := [name for name in files if name not in allowed]:
            raise UsageError(f"{data} was asked for and {extra[0]} given too: leave one of them out")
        if data in {"images", "audio"} and data not in files:
            raise UsageError(f"no {data} were named: give files, a folder or a data set with {data}=... (--{data})")
        return data


def choose_inputs(loaded: Loaded, options: InputOptions, seed: int) -> Calibration:
    """The inputs of a model and its twins.

    Args:
        loaded: the model, with what its directory holds for preparing inputs.
        options: what was asked for.
        seed: of random inputs.

    Returns:
        The calibration.

    Raises:
        UsageError: options that contradict each other or do not fit the model.
        InputError: a text, image or sound is damaged.
        UnreachableError: a file or package is missing.
    """
    if options.batches is not None:
        return given(options.batches)
    data, model = options.chosen, loaded.model
    rows = options.batch_size or _ROWS
    if data in {"images", "audio"}:
        return _from_files(loaded, options, data, rows, seed)
    main = getattr(model, "main_input_name", "input_ids")
    tokenizer = loaded.tokenizer() if data != "random" and main == "input_ids" else None
    if tokenizer is None and data == "text":
        why = "has no tokenizer for text" if main == "input_ids" else f"takes {main}, not text"
        raise UsageError(f"this model {why}: leave text out, or ask for random data")
    if tokenizer is None:
        return random_inputs(model, seed=seed, batch_size=rows)
    texts, describe = _texts(options)
    return text_calibration(tokenizer, texts, model.config, describe=describe, batch_size=rows)


def _from_files(loaded: Loaded, options: InputOptions, data: str, rows: int, seed: int) -> Calibration:
    kind = "image" if data == "images" else "audio"
    if options.text and not {"input_ids", "decoder_input_ids"} & set(signature(loaded.model.forward).parameters):
        raise UsageError(f"{type(loaded.model).__name__} takes no text beside {data}: leave text out")
    paths = _listed(getattr(options, data))
    media = find_media(paths, kind=kind, extensions=IMAGE_FILES if kind == "image" else SOUND_FILES)
    make = image_calibration if kind == "image" else audio_calibration
    return make(
        loaded.model,
        media,
        lambda: options.processor or loaded.processor(kind),
        words=_words(loaded, options, seed),
        describe=", ".join(Path(path).name for path in paths),
        batch_size=rows,
        skip_bad=options.skip_bad,
    )


def _words(loaded: Loaded, options: InputOptions, seed: int) -> Callable[[], Words]:
    """Text to put around images or sounds: of files, or random ids where the model has no tokenizer."""

    @cache  # every pass and every twin sees the same text, and encoding it takes longer than reading it
    def ids() -> Tensor | None:
        tokenizer = loaded.tokenizer()
        if tokenizer is None and options.text:
            raise UsageError("this model has no tokenizer for text: leave text out")
        return None if tokenizer is None else token_ids(tokenizer, _texts(options)[0])

    def start() -> Words:
        known = ids()
        return random_words(loaded.model.config, seed) if known is None else stream(known)

    return start


def _texts(options: InputOptions) -> tuple[list[str], str]:
    paths = [Path(path) for path in _listed(options.text)]
    if not paths:
        return [english_text()], "English text of pydoc_data.topics"
    return read_texts(paths), ", ".join(path.name for path in paths)


def _listed(paths: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths)
