"""Where a model's weights live: one device, several by a device map, or partly on disk until they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from deadreckon.errors import UnreachableError, UsageError
from deadreckon.results.sizes import parse_size

POLICIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that are worked out from the sizes of the model and of the memory."""

_EXAMPLE = "for example cpu=500MB,0=40GB"


@dataclass(frozen=True)
class Placement:
    """Where a model is asked to go.

    Attributes:
        device: where the whole model goes when there is no map.
        device_map: None, one of `POLICIES`, or module path -> device (an index of a GPU, a name, or ``disk``).
        max_memory: GPU index, ``cpu`` or ``disk`` -> the most bytes of weights to put there; None leaves it to the
            policy, which looks at what is free.
    """

    device: torch.device
    device_map: str | Mapping[str, Any] | None = None
    max_memory: Mapping[int | str, int] | None = None


def placement(
    device: str | torch.device = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: str | Mapping[Any, int | str] | None = None,
) -> Placement:
    """What the user's words about devices mean on this machine.

    Args:
        device: a name as on the command line, or a device that is already resolved.
        device_map: one of `POLICIES`, or module path -> device.
        max_memory: most weights a device may hold; asks for the ``auto`` policy where no other is given.

    Returns:
        A placement whose devices all exist.

    Raises:
        UsageError: a device that is not there, two contradicting wishes, or a badly written one.
        UnreachableError: a device map needs the package accelerate, which is not installed.
    """
    limits = max_memory if max_memory is None else parse_max_memory(max_memory)
    if limits is not None and device_map is None:
        device_map = "auto"
    if device_map is None:
        return Placement(device if isinstance(device, torch.device) else resolve_device(device))
    if isinstance(device, str) and device != "auto":
        wish = f"device_map {device_map!r}" if max_memory is None else f"max_memory {max_memory!r}"
        raise UsageError(
            f"device {device!r} puts the whole model on one device and {wish} spreads it: give one of the two"
        )
    if isinstance(device_map, str):
        if device_map not in POLICIES:
            raise UsageError(
                f"unknown device_map {device_map!r}: choose one of {', '.join(POLICIES)}, or in Python a dict of "
                "module path to device; a single device is named by device (--device)"
            )
    elif not device_map:
        raise UsageError("the device_map is empty: give a device to every part of the model")
    else:
        if limits is not None:
            raise UsageError(
                "max_memory is for a policy to obey and the device_map is written out: give one of the two"
            )
        for where in device_map.values():
            as_device(where)
        device_map = dict(device_map)  # loaders may change it
    if find_spec("accelerate") is None:
        raise UnreachableError(
            "a device_map needs the package accelerate, which is not installed: run `pip install deadreckon[measure]`"
        )
    return Placement(resolve_device("auto"), device_map, limits)


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
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} is not available: {reason}; choose auto, cpu or another cuda:N") from None
    if device.type == "meta":
        raise UsageError("device 'meta' holds shapes without numbers: choose auto, cpu, cuda or cuda:N")
    return device


def as_device(where: Any) -> torch.device | None:
    """The device that a value of a device map names; None for ``disk``.

    Args:
        where: index of a GPU, a device or its name, or ``disk``.

    Returns:
        The device, which exists.

    Raises:
        UsageError: not a device, or not one of this machine.
    """
    if where == "disk":
        return None
    is_index = isinstance(where, int) and not isinstance(where, bool)
    return resolve_device(f"cuda:{where}" if is_index else str(where))


def parse_max_memory(wish: str | Mapping[Any, int | str]) -> dict[int | str, int]:
    """The most bytes of weights that each device may hold.

    Args:
        wish: ``cpu=500MB,0=40GB`` as on the command line, or the same as a mapping. Devices are GPU indices, ``cpu``
            and ``disk``; sizes are bytes, or take KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB.

    Returns:
        GPU index, ``cpu`` or ``disk`` -> bytes.

    Raises:
        UsageError: badly written, a device given twice, or a GPU that is not there.
    """
    if isinstance(wish, str):
        pairs = [part.partition("=")[::2] for part in wish.split(",")]
    else:
        pairs = [(str(device), str(size)) for device, size in wish.items()]
    limits: dict[int | str, int] = {}
    for name, size in pairs:
        device = _memory_owner(name.strip(), wish)
        if device in limits:
            raise UsageError(f"max_memory {wish!r} names {device} twice: give each device once")
        limits[device] = _bytes(size.strip(), wish)
    if not limits:
        raise UsageError(f"max_memory is empty: write it {_EXAMPLE}")
    return limits


def _memory_owner(name: str, wish: Any) -> int | str:
    if name in {"cpu", "disk"}:
        return name
    index = name.removeprefix("cuda:")
    if not (index.isascii() and index.isdigit()):
        raise UsageError(f"max_memory {wish!r}: {name!r} is not cpu, disk or the index of a GPU: write it {_EXAMPLE}")
    resolve_device(f"cuda:{int(index)}")
    return int(index)


def _bytes(size: str, wish: Any) -> int:
    if (number := parse_size(size)) is None:
        raise UsageError(f"max_memory {wish!r}: {size!r} is not a size: write it {_EXAMPLE}")
    return number


def device_map_for(model: nn.Module, place: Placement) -> dict[str, Any]:
    """The device of every part of a model, a block of layers kept whole where a policy decides.

    Args:
        model: a transformers model; it may be on the meta device.
        place: with a device map.

    Returns:
        Module (or parameter) path -> device.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if isinstance(place.device_map, Mapping):
        return dict(place.device_map)
    limits: Any = None if place.max_memory is None else dict(place.max_memory)
    whole = sorted(getattr(model, "_no_split_modules", None) or ())  # a list or a set, by the version of transformers
    if place.device_map != "sequential":
        low_zero = place.device_map == "balanced_low_0"
        limits = get_balanced_memory(model, limits, no_split_module_classes=whole, low_zero=low_zero)
    found: dict[str, Any] = infer_auto_device_map(model, limits, no_split_module_classes=whole)
    return found


def where_of(path: str, device_map: Mapping[str, Any]) -> Any:
    """The device that a map gives to a tensor: the entry of the closest module above it.

    Args:
        path: path of a parameter or buffer.
        device_map: module path -> device.

    Returns:
        The entry.

    Raises:
        UsageError: no entry covers it.
    """
    above = path
    while above not in device_map:
        if not above:
            raise UsageError(f"the device_map has no device for {path}: name a module that contains it, or '' for all")
        above = above.rpartition(".")[0]
    return device_map[above]


def input_device(model: nn.Module) -> torch.device:
    """Where a model's inputs go: the device that computes first, also where its weights wait on disk.

    Args:
        model: any module, dispatched over devices or not.

    Returns:
        A device that computes.
    """
    held = [as_device(where) for where in getattr(model, "hf_device_map", {}).values()]
    computing = [device for device in held if device is not None]
    if held:  # weights that wait in main memory or on disk are run on the GPU, where one takes part
        return next((d for d in computing if d.type != "cpu"), torch.device("cpu"))
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def computing_device(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where float64 statistics of a module's output are kept: the device that it runs on, if that has float64.

    Args:
        module: its own first parameter tells, or the hook by which accelerate dispatches it.
        otherwise: for a module without either.

    Returns:
        The device.
    """
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        device = next((parameter.device for parameter in module.parameters()), otherwise)
    device = torch.device(device)
    return torch.device("cpu") if device.type in {"mps", "meta"} else device


@contextmanager
def at_hand(module: nn.Module) -> Iterator[None]:
    """Bring in the weights of a module that wait elsewhere until it runs, and let them go at the end.

    Outside of a forward pass such a module has only shapes. A tensor taken inside the context stays valid after it.
    Does nothing to modules whose weights are in place.

    Args:
        module: a part of a dispatched model; all that it contains is brought in, so it should be small.

    Yields:
        Nothing; the module's parameters hold numbers.
    """
    hooked: list[tuple[nn.Module, Any]] = [
        (part, part._hf_hook) for part in module.modules() if hasattr(part, "_hf_hook")
    ]
    try:
        for part, hook in hooked:
            hook.pre_forward(part)
        yield
    finally:
        for part, hook in reversed(hooked):
            hook.post_forward(part, None)
