"""Models to measure: from a checkpoint, from a published config with random weights, and random-init twins."""

from __future__ import annotations

import copy
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import nn

from deadreckon.checkpoint.torchfile import SUFFIXES
from deadreckon.errors import InputError, UnreachableError, UsageError
from deadreckon.forward.draw import draw, draw_apart, outline
from deadreckon.forward.placement import Placement, device_map_for, placement
from deadreckon.forward.processors import load_processor
from deadreckon.forward.room import check_room

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_TORCH_FILES = (*SUFFIXES, ".bin.index.json")
_USUAL_NAMES = {f"{stem}{end}" for stem in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")}
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: loads the tokenizer when called; returns None where the model has none.
        files: the checkpoint files that were read.
        warnings: what the loading left open.
        processor: loads what prepares images (``image``) or sound (``audio``); returns None where the model has none.
    """

    model: nn.Module
    tokenizer: Callable[[], Any]
    files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    processor: Callable[[str], Any] = field(default=lambda kind: None)


def resolve_dtype(name: str) -> torch.dtype | None:
    """The dtype of that name; None for ``auto`` (as stored).

    Args:
        name: as on the command line.

    Returns:
        The dtype or None.

    Raises:
        UsageError: not a floating dtype that models run in.
    """
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise UsageError(f"unknown dtype {name!r}: choose auto or one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load_checkpoint(
    path: Path,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: str | Mapping[Any, int | str] | None = None,
    trust_remote_code: bool = False,
    head: bool = False,
) -> Loaded:
    """The model of a checkpoint directory, safetensors or torch file or index, or GGUF file.

    Args:
        path: as the MODEL grammar resolved it.
        dtype: None keeps the stored one (float32 for GGUF, which is dequantised).
        device: where to put it; with a device map, not looked at.
        device_map: spread it: one of `placement.POLICIES`, or module path -> device. Weights that go to disk stay in
            the safetensors files, which must not change meanwhile; those whose format differs from the model's are
            written to a temporary directory that goes when the model does.
        max_memory: most weights a device may hold, for the policy to obey; see `placement.parse_max_memory`.
        trust_remote_code: whether code in the directory may run.
        head: load it with the head that its config names, if any, rather than the base model.

    Returns:
        The loaded model.

    Raises:
        UsageError: a device map that does not fit the machine, the model or its format, too little memory, or a format
            that is not run.
        UnreachableError: a file is missing or the config names code that is not trusted.
        InputError: the weights do not fit the architecture that the config names.
    """
    import transformers

    if path.suffix == ".onnx":
        raise UsageError(
            f"{path}: an ONNX graph is read and classified, not run here; name the checkpoint that it was exported from"
        )
    place = placement(device, device_map, max_memory)
    directory = path if path.is_dir() else path.parent
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    with ExitStack() as while_it_lives:
        folder = while_it_lives.enter_context(_under_its_usual_name(path))
        spread: dict[str, Any] = {}
        if place.device_map is not None:
            spill = while_it_lives.enter_context(tempfile.TemporaryDirectory(prefix="deadreckon-"))
            spread = {"device_map": place.device_map, "max_memory": place.max_memory, "offload_folder": spill}
        try:
            model_class = _class_with_head(folder, gguf, common) if head else transformers.AutoModel
            model, info = model_class.from_pretrained(
                folder,
                dtype=dtype or (torch.float32 if gguf else "auto"),
                output_loading_info=True,
                **spread,
                **gguf,
                **common,
            )
            if not spread:
                model = model.to(device)
        except Exception as error:  # whatever another project's loader makes of the user's files
            _refuse(path, place, error)
        if hasattr(model, "hf_device_map"):  # what waits on disk is read from these folders until the model goes
            weakref.finalize(model, while_it_lives.pop_all().close)
    model = model.eval()

    def tokenizer() -> Any:
        # Without any of its files transformers may still return a tokenizer, one that knows no word.
        if not gguf and not any(file for pattern in _TOKENIZER_FILES for file in directory.glob(pattern)):
            return None
        try:
            return transformers.AutoTokenizer.from_pretrained(directory, **gguf, **common)
        except Exception:  # likewise; a model without a tokenizer is measured on random ids
            return None

    processor = partial(load_processor, directory, trust_remote_code=trust_remote_code)
    return Loaded(model, tokenizer, _weight_files(path), tuple(_missing(path, model, info)), processor)


def _class_with_head(folder: Path, gguf: Mapping[str, str], common: Mapping[str, Any]) -> Any:
    """The class that a checkpoint's config names; llama.cpp runs causal language models."""
    import transformers

    if gguf:
        return transformers.AutoModelForCausalLM
    named = getattr(transformers.AutoConfig.from_pretrained(folder, **common), "architectures", None) or ()
    return next((found for name in named if (found := getattr(transformers, name, None))), transformers.AutoModel)


def _refuse(path: Path, place: Placement, error: Exception) -> NoReturn:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        raise UsageError(
            f"{path}: {place.device} has too little free memory for it: choose a narrower dtype (--dtype bfloat16), "
            f"or device_map='auto' (--device-map auto), which uses several GPUs, main memory and disk ({reason})"
        ) from error
    if place.device_map is not None and any(word in reason.lower() for word in ("device_map", "device map", "disk")):
        raise UsageError(f"{path}: device_map {place.device_map!r} does not work for it: {reason}") from error
    raise UnreachableError(f"{path}: transformers cannot load it: {reason}") from error


@contextmanager
def _under_its_usual_name(path: Path) -> Iterator[Path]:
    """A directory in which transformers finds just the weights that `path` names: it looks for fixed file names."""
    if path.is_dir() or path.suffix == ".gguf":
        yield path if path.is_dir() else path.parent
        return
    with tempfile.TemporaryDirectory() as folder:
        stem = "pytorch_model.bin" if path.name.endswith(_TORCH_FILES) else "model.safetensors"
        usual = f"{stem}.index.json" if path.suffix == ".json" else stem
        (Path(folder) / usual).symlink_to(path.resolve())
        for beside in path.parent.iterdir():
            link = Path(folder) / beside.name
            if not link.is_symlink() and beside.name not in _USUAL_NAMES:
                link.symlink_to(beside.resolve())
        yield Path(folder)


def _missing(path: Path, model: nn.Module, info: dict[str, Any]) -> Iterator[str]:
    missing = sorted(info.get("missing_keys", ()))
    if not missing:
        return
    total = sum(1 for _ in model.state_dict())
    if len(missing) * 2 > total:
        raise InputError(
            f"{path}: {len(missing)} of the model's {total} tensors are not in the checkpoint (first: {missing[0]}); "
            "its config names another architecture"
        )
    yield f"not in the checkpoint and left at random: {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}"


def _weight_files(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    return tuple(sorted(p for p in path.iterdir() if p.suffix in {".safetensors", ".bin"} or p.name == "config.json"))


def random_model(
    model_class: str,
    config_class: str,
    config: Mapping[str, Any],
    *,
    seed: int,
    dtype: torch.dtype | None,
    device: torch.device,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: str | Mapping[Any, int | str] | None = None,
    head: bool = False,
) -> nn.Module:
    """A published configuration with weights drawn by the model's own initialiser.

    Args:
        model_class: class in transformers, e.g. ``GPTNeoXForCausalLM``.
        config_class: its config class.
        config: keyword arguments of the config.
        seed: seed of the draw; weights depend on it, on the device type or map and on the library versions.
        dtype: None means float32.
        device: where it is built; with a device map, not looked at.
        device_map: spread it: one of `placement.POLICIES`, or module path -> device, paths as in the base model. Each
            part is drawn where it stays.
        max_memory: most weights a device may hold, for the policy to obey; see `placement.parse_max_memory`.
        head: keep the head.

    Returns:
        The base model, or the one with its head, in eval mode.

    Raises:
        UsageError: the installed transformers lacks the class, or there is not enough memory.
    """
    import transformers

    try:
        model_type, config_type = getattr(transformers, model_class), getattr(transformers, config_class)
    except AttributeError:
        raise UsageError(
            f"transformers {transformers.__version__} has no {model_class}: upgrade it or choose another model"
        ) from None
    place, dtype = placement(device, device_map, max_memory), dtype or torch.float32
    planned = outline(model_type, config_type(**config), dtype)
    if place.device_map is None:
        check_room(planned, {"": place.device}, model_class)
        drawn = draw(model_type, config_type(**config), seed=seed, dtype=dtype, device=place.device)
        return drawn if head else _headless(drawn)
    return _spread(planned if head else _headless(planned), place, seed=seed, dtype=dtype)


def twin(model: nn.Module, seed: int) -> nn.Module:
    """A random-init twin: same class and config, dtype and devices, weights of the model's own initialiser.

    Args:
        model: a transformers model, spread by a device map or not.
        seed: seed of the draw.

    Returns:
        The twin, in eval mode.

    Raises:
        UsageError: the model has no config to be rebuilt from, or there is no room for a twin beside it.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise UsageError(
            f"{type(model).__name__} has no config to build a random-init twin from: measure it without twins"
        )
    parameter, config = next(model.parameters()), copy.deepcopy(config)
    if device_map := getattr(model, "hf_device_map", None):
        planned = outline(type(model), config, parameter.dtype)
        return _spread(planned, placement(device_map=device_map), seed=seed, dtype=parameter.dtype)
    check_room(model, {"": parameter.device}, f"a twin of {type(model).__name__}")
    return draw(type(model), config, seed=seed, dtype=parameter.dtype, device=parameter.device)


def _headless(model: nn.Module) -> nn.Module:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    base: Any = model if head is None else model.base_model  # logits cost much and are not measured
    return cast("nn.Module", base)


def _spread(planned: nn.Module, place: Placement, *, seed: int, dtype: torch.dtype) -> nn.Module:
    device_map = device_map_for(planned, place)
    check_room(planned, device_map, type(planned).__name__)
    return draw_apart(planned, device_map, seed=seed, dtype=dtype)
