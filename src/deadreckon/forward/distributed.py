"""One measurement by several processes: each runs its share of the rows, and their statistics are added up.

The processes are those of ``torchrun`` (or of anything that sets the same environment). Each adds what it saw about its
own mean; before the second moments are summed, every process moves its own to the mean of all, so one all-reduce gives
what one process would have got, to rounding.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deadreckon.errors import InputError, UnreachableError, UsageError
from deadreckon.forward.calibration import Calibration
from deadreckon.forward.moments import Moments, Variances
from deadreckon.forward.share import Share
from deadreckon.forward.statistics import ACCUMULATORS, NormStatistics

# A process that is slower than the others by more than this is taken for dead. One that ends is noticed at once.
_PATIENCE = datetime.timedelta(minutes=30)
_SAMPLED = 64


def launched() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process is the one that reports."""
    return os.environ.get("RANK", "0") == "0"


def local_device(wish: str) -> str:
    """What ``auto`` and ``cuda`` mean for this process: its own GPU, where there are any; other wishes as given."""
    if wish not in {"auto", "cuda"} or not torch.cuda.is_available():
        return wish
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


@contextmanager
def together(device: torch.device) -> Iterator[Share]:
    """Join the other processes for the time of the context; a process group that exists already is used and left.

    Args:
        device: where this process computes: NCCL between GPUs of one process each, gloo otherwise.

    Yields:
        The share of this process.

    Raises:
        UnreachableError: the other processes cannot be reached, or one of them ended before the work was done.
        RuntimeError: anything else that the work raises passes unchanged.
        ValueError: likewise.
    """
    joined = not dist.is_initialized()
    try:
        if joined:
            own_gpu = device.type == "cuda" and device.index is not None
            if own_gpu:
                torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo", timeout=_PATIENCE)
        yield Share(dist.get_rank(), dist.get_world_size())
    except (RuntimeError, ValueError) as error:
        if not _of_communication(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UnreachableError(
            f"rank {os.environ.get('RANK', '?')}: another process of this measurement ended or cannot be reached "
            f"({reason}): see its own message, and start all of them again"
        ) from error
    finally:
        if joined and dist.is_initialized():
            dist.destroy_process_group()


def _of_communication(error: Exception) -> bool:
    words = ("gloo", "nccl", "connection", "timed out", "timeout", "rendezvous", "environment variable", "store")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def agree(what: str, fingerprint: str) -> None:
    """Check that all processes are about to do the same.

    Args:
        what: what is compared, for the message.
        fingerprint: of this process.

    Raises:
        InputError: they differ.
    """
    found = _gathered(fingerprint)
    others = [str(rank) for rank, theirs in enumerate(found) if theirs != found[0]]
    if others:
        raise InputError(
            f"{'ranks' if others[1:] else 'rank'} {', '.join(others)} {'differ' if others[1:] else 'differs'} from "
            f"rank 0 in {what}: start every process with the same model, files, options and inputs"
        )


def fingerprint_of_model(model: nn.Module) -> str:
    """Names, shapes, dtypes and a few values of everything a model holds, hashed; values on disk are left out."""
    digest = hashlib.sha256()
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.is_meta:
            step = max(1, parameter.numel() // _SAMPLED)
            digest.update(parameter.detach().flatten()[::step][:_SAMPLED].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of_inputs(calibration: Calibration, *options: object) -> str:
    """What the inputs are, the first batch's tensors, and the options that decide what is made of them, hashed."""
    digest = hashlib.sha256(f"{calibration.describe} {options}".encode())
    for key, value in sorted(next(calibration.batches(), {}).items()):
        digest.update(f"{key} {tuple(value.shape) if isinstance(value, Tensor) else value}".encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()


def add_up(statistics: NormStatistics) -> None:
    """Give every process the statistics of all; one that saw no token learns their dtype too.

    Args:
        statistics: of this process; changed in place.

    Raises:
        UsageError: they were kept with their tokens, which are not sent.
    """
    if statistics.kept is not None:
        raise UsageError("the svd solver keeps the tokens themselves: run it in one process, or choose eigh")
    found = _gathered(statistics.dtype if statistics.count else None)
    statistics.dtype = next((dtype for dtype in found if dtype is not None), statistics.dtype)
    for name in ACCUMULATORS:
        _add_up(getattr(statistics, name))
    for total in (statistics.residual, statistics.signal):
        dist.all_reduce(total)


def union(ids: frozenset[int] | None) -> frozenset[int] | None:
    """The token ids that any process saw; None where one of them has none."""
    found = _gathered(ids)
    return None if any(part is None for part in found) else frozenset().union(*found)


def _add_up(accumulator: Moments | Variances) -> None:
    total = sum(_gathered(accumulator.count))
    mean = accumulator.mean * (accumulator.count / total) if total else accumulator.mean.clone()
    dist.all_reduce(mean)
    accumulator.move_to(mean)
    dist.all_reduce(accumulator.sums)
    accumulator.count = total


def _gathered(value: Any) -> list[Any]:
    """The value that each process gives, by rank."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
