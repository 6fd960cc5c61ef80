"""Models to measure: from a checkpoint, from a published config with random weights, and random-init twins."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from deadreckon.errors import InputError, UnreachableError, UsageError

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: loads the tokenizer when called; returns None where the model has none.
        files: the checkpoint files that were read.
        warnings: what the loading left open.
    """

    model: nn.Module
    tokenizer: Callable[[], Any]
    files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def resolve_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` means here.

    Args:
        name: as on the command line.

    Returns:
        The device, which exists.

    Raises:
        UsageError: not a device, or not one of this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from None
    return device


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
    path: Path, *, dtype: torch.dtype | None, device: torch.device, trust_remote_code: bool = False
) -> Loaded:
    """The base model (no head) of a checkpoint directory, safetensors file or index, or GGUF file.

    Args:
        path: as the MODEL grammar resolved it.
        dtype: None keeps the stored one (float32 for GGUF, which is dequantised).
        device: where to put it.
        trust_remote_code: whether code in the directory may run.

    Returns:
        The loaded model.

    Raises:
        UnreachableError: a file is missing or the config names code that is not trusted.
        InputError: the weights do not fit the architecture that the config names.
    """
    import transformers

    directory = path if path.is_dir() else path.parent
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    try:
        with _under_its_usual_name(path) as folder:
            model, info = transformers.AutoModel.from_pretrained(
                folder, dtype=dtype or (torch.float32 if gguf else "auto"), output_loading_info=True, **gguf, **common
            )
    except Exception as error:  # whatever another project's loader makes of the user's files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreachableError(f"{path}: transformers cannot load it: {reason}") from error
    model = model.to(device).eval()

    def tokenizer() -> Any:
        # Without any of its files transformers may still return a tokenizer, one that knows no word.
        if not gguf and not any(file for pattern in _TOKENIZER_FILES for file in directory.glob(pattern)):
            return None
        try:
            return transformers.AutoTokenizer.from_pretrained(directory, **gguf, **common)
        except Exception:  # likewise; a model without a tokenizer is measured on random ids
            return None

    return Loaded(model, tokenizer, _weight_files(path), tuple(_missing(path, model, info)))


@contextmanager
def _under_its_usual_name(path: Path) -> Iterator[Path]:
    """A directory in which transformers finds just the weights that `path` names: it looks for fixed file names."""
    if path.is_dir() or path.suffix == ".gguf":
        yield path if path.is_dir() else path.parent
        return
    with tempfile.TemporaryDirectory() as folder:
        usual = "model.safetensors.index.json" if path.suffix == ".json" else "model.safetensors"
        (Path(folder) / usual).symlink_to(path.resolve())
        for beside in path.parent.iterdir():
            link = Path(folder) / beside.name
            if not link.is_symlink() and beside.name not in {"model.safetensors", "model.safetensors.index.json"}:
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
) -> nn.Module:
    """A published configuration with weights drawn by the model's own initialiser.

    Args:
        model_class: class in transformers, e.g. ``GPTNeoXForCausalLM``.
        config_class: its config class.
        config: keyword arguments of the config.
        seed: seed of the draw; weights depend on it, on the device type and on the library versions.
        dtype: None means float32.
        device: where it is built.

    Returns:
        The base model, in eval mode.

    Raises:
        UsageError: the installed transformers lacks the class.
    """
    import transformers

    try:
        model_type, config_type = getattr(transformers, model_class), getattr(transformers, config_class)
    except AttributeError:
        raise UsageError(
            f"transformers {transformers.__version__} has no {model_class}: upgrade it or choose another model"
        ) from None
    model = _initialised(model_type, config_type(**config), seed=seed, dtype=dtype or torch.float32, device=device)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    base: Any = model if head is None else model.base_model  # logits cost much and are not measured
    return cast("nn.Module", base)


def twin(model: nn.Module, seed: int) -> nn.Module:
    """A random-init twin: same class and config, dtype and device, weights of the model's own initialiser.

    Args:
        model: a transformers model.
        seed: seed of the draw.

    Returns:
        The twin, in eval mode.

    Raises:
        UsageError: the model has no config to be rebuilt from.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise UsageError(
            f"{type(model).__name__} has no config to build a random-init twin from: measure it without twins"
        )
    parameter = next(model.parameters())
    return _initialised(type(model), copy.deepcopy(config), seed=seed, dtype=parameter.dtype, device=parameter.device)


def _initialised(model_type: Any, config: Any, *, seed: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    with _seeded(seed, device), _default_dtype(dtype), device:
        model: nn.Module = model_type(config)
    return model.eval()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
