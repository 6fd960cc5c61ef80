"""Traces of a conversion that was half done: what a checkpoint's gains and weights say against its own architecture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deadreckon.checkpoint.anatomy_table import anatomy_of
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.checkpoint.matrices import sample
from deadreckon.errors import DeadreckonError
from deadreckon.kernel.anatomy import NormSite
from deadreckon.kernel.fingerprint import mean_share
from deadreckon.kernel.norm import Float64Array, Norm, median

CENTRED_BELOW = 0.02
"""Largest R of a matrix whose mean was subtracted: rounding to 4 bits leaves 0.013 of an embedding, to 8 bits
1e-4. Trained embeddings read 0.04 and above, also under LayerNorms."""

SLOPE_EXCESS, SLOPE_CORRELATION = 0.75, 0.7
"""Readers' column norms go with a power of the gain, -0.9 to 0.5 in trained models, which folding the gain in raises by
exactly 1. Of 86 norms of five trained models, these thresholds find 67 where folded and none where not."""

_EMBEDDING = re.compile(r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings|tok_embeddings|token_embd|embed_in)\.weight")
_NEGATIVE, _LISTED = 0.25, 3
_ROWS = 96  # of a reader: its column norms to 7%, less than what they vary by
_ENTRIES = 1 << 23  # of all readers that are looked at; of a larger model, only every so many norms


def find_conversions(checkpoint: Checkpoint, norms: Sequence[Norm], kind: str) -> list[str]:
    """What looks converted, each in a sentence.

    Args:
        checkpoint: an opened checkpoint; a part of its embedding and of the norms' readers is read.
        norms: all of its norms, the final one first.
        kind: what its final norm is taken for.

    Returns:
        A sentence for each: a mean-centred stream under RMSNorms, gains that are 1 in some norms alone, gains that look
        as if they were stored as gain - 1, gains that are also in their readers.

    Raises:
        InputError: the file ends too early.
        UnreachableError: it cannot be read.
    """
    stored = [norm for norm in norms if any(f"{norm.name}." in name for name in checkpoint.tensors)]
    found = list(_centred(checkpoint, norms[0].hidden_size)) if kind == "rmsnorm" and norms else []
    shifted = list(_forgotten_offset(stored))  # such gains are not what a reader's columns would have been folded with
    return [*found, *shifted, *_half_folded(stored), *([] if shifted else _folded_twice(checkpoint))]


def _centred(checkpoint: Checkpoint, width: int) -> Iterator[str]:
    for name, entry in checkpoint.tensors.items():
        if _EMBEDDING.fullmatch(name) and entry.shape[1:] == (width,):
            rows = sample(checkpoint, entry, 1, entries=1 << 18)
            if rows is not None and (share := mean_share(rows)) <= CENTRED_BELOW:
                yield (
                    f"{name} is mean-centred (R = {share:.1g}) and RMSNorms keep a mean: the stream looks "
                    "converted, as for a LayerNorm"
                )


def _forgotten_offset(norms: Sequence[Norm]) -> Iterator[str]:
    """Trained gains are positive but for a few; stored as gain - 1 they lie on both sides of 0 or below it."""
    plain = [norm for norm in norms if norm.gain_offset == 0.0]
    odd = [n for n in plain if not n.gain.any() or np.mean(n.gain < 0.0) >= _NEGATIVE > 0.01 >= np.mean(n.gain < -1.0)]
    if odd and 2 * len(odd) > len(plain):
        typical = median(np.concatenate([norm.gain for norm in odd]))
        yield (
            f"the gains of {len(odd)} of {len(plain)} norms are zero or negative to a large part (median "
            f"{typical:.2g}): they look stored as gain - 1, and the architecture that the files name adds no 1"
        )


def _half_folded(norms: Sequence[Norm]) -> Iterator[str]:
    ones = [norm for norm in norms if norm.gain.size > 1 and np.all(norm.gain == 1.0)]
    varied = [norm for norm in norms if np.ptp(norm.gain) > 0.01 * np.abs(norm.gain).mean()]
    if ones and varied:
        few, how = (ones, "are 1 in every coordinate") if len(ones) <= len(varied) else (varied, "alone still vary")
        yield (
            f"half-folded: the gains of {_list(few)} {how}, and {len(ones)} of {len(norms)} norms have such gains of "
            "1: a gain was folded into what reads it there and not elsewhere"
        )


def _folded_twice(checkpoint: Checkpoint) -> Iterator[str]:
    fits = dict(reader_fits(checkpoint))
    usual = usual_slope(list(fits.values()))
    twice = [name for name, fit in fits.items() if fit.stands_out_from(usual)]
    if twice:
        slope = fits[twice[0]].slope
        yield (
            f"folded twice: what reads {_list(twice)} grows with the gain's power {slope:.2f} along each coordinate "
            f"(elsewhere {usual:.2f}): the gain is in the reader's columns and still in the norm"
        )


@dataclass(frozen=True)
class ReaderFit:
    """Log column norm of a norm's readers over its log gain.

    Attributes:
        slope: of the line.
        gains: variance of log gain.
        columns: variance of log column norm.
    """

    slope: float
    gains: float
    columns: float

    def stands_out_from(self, usual: float) -> bool:
        """Whether the gain explains what the usual slope leaves, with about a slope of 1.

        Args:
            usual: the slope of a model's other norms.

        Returns:
            Whether it does.
        """
        excess = self.slope - usual
        left = self.columns - (2 * usual * self.slope - usual**2) * self.gains
        explained = excess * (self.gains / left) ** 0.5 if left > 0.0 else 0.0
        return excess >= SLOPE_EXCESS and explained >= SLOPE_CORRELATION


def usual_slope(fits: Sequence[ReaderFit]) -> float:
    """What the slopes of a model's norms are compared with: their median, 0 at most, in case all were folded.

    Args:
        fits: of its norms.

    Returns:
        The slope.
    """
    return min(0.0, median(np.array([fit.slope for fit in fits]))) if fits else 0.0


def reader_fits(checkpoint: Checkpoint) -> Iterator[tuple[str, ReaderFit]]:
    """A fit for each norm with known readers, or of a large model for some of them.

    Args:
        checkpoint: an opened checkpoint; its norms and parts of their readers are read.

    Yields:
        Name of the norm, and its fit.

    Raises:
        InputError: the file ends too early, or a gain is not a vector of finite numbers.
        UnreachableError: it cannot be read.
    """
    config = checkpoint.config
    if checkpoint.format == "gguf" or not config:
        return
    shapes = {name: entry.shape for name, entry in checkpoint.tensors.items()}
    classes = config.get("architectures")
    class_name = classes[0] if isinstance(classes, list) and classes else None
    try:
        norms = anatomy_of(config.get("model_type"), class_name, config, shapes, str(checkpoint.path)).norms
    except DeadreckonError:  # not in the table: nothing is known of what reads its norms
        return
    sites = [site for site in norms if site.gain is not None and site.readers]
    width = max((site.hidden_size for site in sites), default=1)
    affordable = max(1, _ENTRIES // (_ROWS * width * max(len(site.readers) for site in sites))) if sites else 1
    step = max(1, -(-len(sites) // affordable))
    for site in sites[::-step]:  # from the end, where blocks are what a half-done conversion leaves out
        energy = _column_energy(checkpoint, site)
        if energy is not None and site.gain is not None:
            gain = np.abs(checkpoint.vector(site.gain) + site.offset)
            if (fit := _fit(gain, energy)) is not None:
                yield site.name, fit


def _column_energy(checkpoint: Checkpoint, site: NormSite) -> Float64Array | None:
    energy = np.zeros(site.hidden_size)
    for reader in site.readers:
        entry = checkpoint.tensors[reader.weight]
        axis = 0 if reader.input_first else 1
        if len(entry.shape) != 2 or entry.shape[axis] != site.hidden_size:
            return None
        columns = sample(checkpoint, entry, axis, entries=_ROWS * site.hidden_size)
        if columns is None:
            return None
        energy += np.einsum("ij,ij->i", columns, columns) / columns.shape[1]
    return energy


def _fit(gain: Float64Array, energy: Float64Array) -> ReaderFit | None:
    """The fit over the middle of the gains; None where they do not vary."""
    low, high = np.sort(gain)[[gain.size // 50, gain.size - 1 - gain.size // 50]]
    kept = (gain >= low) & (gain <= high) & (gain > 0.0) & (energy > 0.0)
    if kept.sum() < 16:
        return None
    x, y = np.log(gain[kept]), 0.5 * np.log(energy[kept])
    x, y = x - x.mean(), y - y.mean()
    xx, xy, yy = (float(product) / x.size for product in (x @ x, x @ y, y @ y))
    return ReaderFit(xy / xx, xx, yy) if xx > 1e-4 else None


def _list(names: Sequence[Norm | str]) -> str:
    shown = [name if isinstance(name, str) else name.name for name in names[:_LISTED]]
    return ", ".join(shown) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
