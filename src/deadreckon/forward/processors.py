"""The image processor or feature extractor that a checkpoint's directory holds.

Where torchvision is not installed transformers' PIL versions do the same work. Video processors have no such version:
their settings are applied to one frame at a time instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

from deadreckon.errors import InputError, UnreachableError

_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_SHOWN = 300  # characters of a reason: some list all that transformers knows
_OF_FRAMES = (
    "size",
    "crop_size",
    "resample",
    "image_mean",
    "image_std",
    "rescale_factor",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
)


def load_processor(folder: Path, kind: str, *, trust_remote_code: bool = False) -> Any:
    """What turns images or sound into a model's inputs.

    Args:
        folder: with the model's config.
        kind: ``image`` or ``audio``.
        trust_remote_code: whether code in the folder may run.

    Returns:
        The processor; None where the folder describes none.

    Raises:
        InputError: a description is no JSON.
        UnreachableError: transformers cannot make a processor of it.
    """
    found = [folder / name for name in _FILES if (folder / name).exists()]
    if not found:
        return None
    import transformers

    settings = _read(found[0])
    try:
        if kind == "audio":
            factory: Any = transformers.AutoFeatureExtractor
        elif found[0].name == _FILES[2] or "video_processor_type" in settings:
            known = {name: settings[name] for name in _OF_FRAMES if settings.get(name) is not None}
            return transformers.BitImageProcessorPil(**known)
        else:
            factory = _image_factory(settings)
        return factory.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever another project's loader makes of the user's files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreachableError(
            f"{found[0]}: transformers cannot make its {kind} processor: {shorten(reason, _SHOWN)}"
        ) from error


def _image_factory(settings: Mapping[str, Any]) -> Any:
    """What loads an image processor: without torchvision, in some versions only the PIL class itself does."""
    import transformers

    own = settings.get("image_processor", settings)
    named = own.get("image_processor_type") or own.get("feature_extractor_type") or ""
    name = str(named).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    pil = getattr(transformers, f"{name}Pil", None) if name else None
    return transformers.AutoImageProcessor if pil is None or find_spec("torchvision") else pil


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); take a whole copy of it") from None
    except OSError as error:
        raise UnreachableError(f"{path}: {error.strerror}") from None
    return settings if isinstance(settings, dict) else {}
