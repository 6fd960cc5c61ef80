"""Sound as calibration, through the model's own feature extractor."""

from __future__ import annotations

import inspect
import io
import wave
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.calibration import Batch, Calibration, batched
from deadreckon.forward.media import Medium, Undecodable, usable
from deadreckon.forward.multimodal import Weaver
from deadreckon.forward.shapes import SOUNDS
from deadreckon.forward.text import Words, sequence_length

EXTENSIONS = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".ogg", ".opus", ".wav"})
_SECONDS = 10  # a piece, where the model does not say how many it takes
_LEAST = 0.1  # seconds: less is not enough for the convolutions that speech models begin with

Samples = NDArray[np.float32]


def audio_calibration(
    model: nn.Module,
    media: Sequence[Medium],
    processor: Callable[[], Any],
    *,
    words: Callable[[], Words],
    describe: str,
    batch_size: int,
    skip_bad: bool,
) -> Calibration:
    """Sounds cut into pieces as long as the model takes (10 seconds where it takes any).

    Args:
        model: takes ``input_features`` or ``input_values``.
        media: the sounds.
        processor: loads its feature extractor, or a processor that holds one; returns None where there is none.
        words: starts a stream of text, for a decoder and for sequences that hold a sound.
        describe: where the sounds are from, for the record.
        batch_size: pieces a forward.
        skip_bad: leave out what cannot be decoded.

    Returns:
        The calibration: every piece once. Nothing is padded but by the extractor itself, so there is no mask.

    Raises:
        UsageError: the model takes no sound, or the extractor does not fit it.
        InputError: some sounds cannot be decoded.
    """
    takes = inspect.signature(model.forward).parameters
    if not any(name in takes for name in SOUNDS):
        raise UsageError(f"{type(model).__name__} takes no sound (it takes {', '.join(list(takes)[:4])}, ...)")
    weaver = Weaver.of(model, "audio")
    if getattr(model, "main_input_name", None) not in SOUNDS and weaver is None:
        raise UsageError(
            f"{type(model).__name__} does not say how it puts sound beside text: pass batches=... of its own inputs"
        )
    if (found := processor()) is None:
        raise UsageError(
            f"{type(model).__name__} comes without a feature extractor (preprocessor_config.json): put it beside the "
            "config, or pass processor=... in Python"
        )
    good, skipped = usable(media, decoded, kind="audio", skip_bad=skip_bad)
    extract = getattr(found, "feature_extractor", None) or found
    rate = int(getattr(extract, "sampling_rate", 16000))
    longest = getattr(extract, "n_samples", None) or _SECONDS * rate
    decoder = "decoder_input_ids" in takes

    def rows() -> Iterator[dict[str, Tensor]]:
        text = words() if decoder or weaver is not None else None
        for medium in good:
            samples, own_rate = decoded(medium.read())
            for piece in _pieces(samples, round(longest * own_rate / rate), own_rate):
                row = _extracted(extract, resampled(piece, own_rate, rate), rate, takes)
                if weaver is not None and text is not None:
                    yield weaver.row(row, text)
                elif text is not None:
                    yield {**row, "decoder_input_ids": text(sequence_length(model.config))[None]}
                else:
                    yield row

    def batches() -> Iterator[Batch]:
        yield from batched(rows(), batch_size, model)

    return Calibration(f"{len(good)} sounds of {describe}", batches, skipped)


def decoded(data: bytes) -> tuple[Samples, int]:
    """The samples of a file, channels averaged, and how many there are a second.

    Args:
        data: the file: PCM WAV, or any format that the package soundfile reads where that is installed.

    Returns:
        Samples in [-1, 1], shape (n,), and the rate in Hz.

    Raises:
        Undecodable: it is no such file, or holds less than a tenth of a second.
    """
    try:
        samples, rate = _wav(data)
    except (wave.Error, EOFError) as error:
        samples, rate = _soundfile(data, str(error) or "it ends too early")
    if len(samples) < _LEAST * rate:
        raise Undecodable(f"only {len(samples)} samples at {rate} Hz: less than {_LEAST} s")
    if not np.isfinite(samples).all():
        raise Undecodable("its samples are not all finite")
    return samples, rate


def _wav(data: bytes) -> tuple[Samples, int]:
    with wave.open(io.BytesIO(data)) as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        raw = file.readframes(file.getnframes())
        if len(raw) < file.getnframes() * width * channels:
            raise Undecodable(f"it ends after {len(raw)} of {file.getnframes() * width * channels} bytes of samples")
    numbers = np.frombuffer(raw, np.uint8).reshape(-1, width).astype(np.int64)
    whole = sum(numbers[:, k] << (8 * k) for k in range(width))
    half = 1 << (8 * width - 1)
    signed = whole - half if width == 1 else (whole ^ half) - half  # 8-bit samples alone are stored without a sign
    return np.asarray(signed / half, np.float32).reshape(-1, channels).mean(1), rate


def _soundfile(data: bytes, why: str) -> tuple[Samples, int]:
    try:
        import soundfile
    except ImportError:
        raise Undecodable(f"not a PCM WAV file ({why}); for other formats: pip install soundfile") from None
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except Exception as error:  # decoders raise what they like
        raise Undecodable(str(error)) from None
    return samples.mean(1), rate


def resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    """The same sound at another rate, what lies above half of the lower rate left out.

    Args:
        samples: shape (n,).
        rate: of the samples, in Hz.
        wanted: in Hz.

    Returns:
        Shape (n * wanted / rate,).
    """
    if rate == wanted:
        return samples
    count = round(len(samples) * wanted / rate)
    return np.asarray(np.fft.irfft(np.fft.rfft(samples), count) * (count / len(samples)), np.float32)


def _pieces(samples: Samples, longest: int, rate: int) -> Iterator[Samples]:
    for start in range(0, len(samples), longest):
        piece = samples[start : start + longest]
        if len(piece) >= _LEAST * rate:
            yield piece


def _extracted(extract: Any, piece: Samples, rate: int, takes: Any) -> dict[str, Tensor]:
    try:
        made = extract(piece, sampling_rate=rate, return_tensors="pt")
    except Exception as error:  # whatever another project's extractor makes of the user's sound
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{type(extract).__name__} cannot process the sound ({reason}); pass batches=... of the model's own inputs"
        ) from error
    # A mask of samples or frames is not one of tokens; without padding none is needed.
    named = {"feature_attention_mask": made.get("attention_mask"), **made}
    tensors = {name: torch.as_tensor(value) for name, value in named.items() if value is not None}
    return {name: value for name, value in tensors.items() if name in takes and name != "attention_mask"}
