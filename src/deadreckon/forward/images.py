"""Images as calibration, through the model's own image processor."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UnreachableError, UsageError
from deadreckon.forward.calibration import Batch, Calibration, batched
from deadreckon.forward.media import Medium, Undecodable, usable
from deadreckon.forward.multimodal import Weaver
from deadreckon.forward.shapes import IMAGES, frames, pixel_channels
from deadreckon.forward.text import Words

EXTENSIONS = frozenset(
    f".{end}" for end in ["bmp", "gif", "jpeg", "jpg", "jp2", "pbm", "pgm", "png", "ppm", "tif", "tiff", "webp"]
)


def image_calibration(
    model: nn.Module,
    media: Sequence[Medium],
    processor: Callable[[], Any],
    *,
    words: Callable[[], Words],
    describe: str,
    batch_size: int,
    skip_bad: bool,
) -> Calibration:
    """Images, or for a model of videos clips of as many successive images as it takes frames.

    Args:
        model: takes ``pixel_values`` (or ``pixel_values_videos``).
        media: the images.
        processor: loads its image processor, or a processor that holds one; returns None where there is none.
        words: starts a stream of text for the sequences that hold an image; not called for other models.
        describe: where the images are from, for the record.
        batch_size: images a forward.
        skip_bad: leave out what cannot be decoded.

    Returns:
        The calibration: every image once.

    Raises:
        UsageError: the model takes no images, or the processor does not fit it.
        InputError: some images cannot be decoded.
        UnreachableError: the package that decodes images is missing.
    """
    takes = inspect.signature(model.forward).parameters
    if not any(name in takes for name in IMAGES):
        raise UsageError(f"{type(model).__name__} takes no images (it takes {', '.join(list(takes)[:4])}, ...)")
    if getattr(model, "main_input_name", None) not in IMAGES and Weaver.of(model, "image") is None:
        raise UsageError(
            f"{type(model).__name__} does not say how it puts images beside text: pass batches=... of its own inputs"
        )
    if (found := processor()) is None:
        raise UsageError(
            f"{type(model).__name__} comes without an image processor (preprocessor_config.json): put it beside the "
            "config, or pass processor=... in Python"
        )
    config: Any = model.config
    mode = "L" if pixel_channels(config) == 1 else "RGB"
    good, skipped = usable(media, lambda data: _decoded(data, mode), kind="image", skip_bad=skip_bad)
    length = frames(config) if getattr(model, "main_input_name", None) in IMAGES else 1
    if len(good) < length:
        raise UsageError(f"{len(good)} images were given and a clip of this model has {length} frames: give more")
    process = getattr(found, "image_processor", None) or found

    def rows() -> Iterator[dict[str, Tensor]]:
        weaver, text = Weaver.of(model, "image"), None
        for start in range(0, len(good) - length + 1, length):
            clip = [_decoded(medium.read(), mode) for medium in good[start : start + length]]
            row = _clip([_processed(process, frame) for frame in clip], takes)
            if weaver is None:
                yield row
            else:
                text = text or words()
                yield weaver.row(row, text)

    def batches() -> Iterator[Batch]:
        yield from batched(rows(), batch_size, model)

    what = f"{len(good)} images" if length == 1 else f"{len(good) // length} clips of {length} images"
    return Calibration(f"{what} of {describe}", batches, skipped)


def _clip(made: list[dict[str, Tensor]], takes: Collection[str]) -> dict[str, Tensor]:
    """What the model takes of one image, or of the frames of one clip, which are processed one by one."""
    name = next(name for name in IMAGES if name in takes)
    if len(made) == 1:
        return {key: value for key, value in made[0].items() if key in takes}
    pixels = [frame["pixel_values"] for frame in made]
    return {name: torch.stack([p.reshape(p.shape[-3:]) for p in pixels])[None]}


def _processed(process: Any, image: Any) -> dict[str, Tensor]:
    try:
        made = process(images=image, return_tensors="pt")
    except Exception as error:  # whatever another project's processor makes of the user's images
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{type(process).__name__} cannot process the images ({reason}); pass batches=... of the model's own inputs"
        ) from error
    return {name: value for name, value in made.items() if isinstance(value, Tensor)}


def _decoded(data: bytes, mode: str) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError:
        raise UnreachableError(
            "decoding images needs Pillow, which is not installed: pip install 'deadreckon[vision]'"
        ) from None
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert(mode)
    except Exception as error:  # decoders raise what they like
        reason = "not an image that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise Undecodable(reason if data else "the file is empty") from None
