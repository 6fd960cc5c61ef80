"""What the paper claims, judged by the rows of its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deadreckon.results.reproduction import Claim, FisherRow, ModelRow, TrainedRow

ALIGNED = 0.9999
_FAR_FROM_ALIGNED = 0.99
_RANDOM_DEVIATIONS = 4  # of |cos| with a random direction, which has a standard deviation of 1/sqrt(d)
_UNCHANGED = 0.1  # decades
_FINEST_FIRST = ("float64", "float32", "float16", "bfloat16")  # float16 and bfloat16: by their spacing
_WORST_FIRST = ("collapsed", "rescaled", "eased", "not_applicable", "preserved")

Judgement = tuple[str, str]  # verdict, our figure in words


@dataclass(frozen=True)
class Rows:
    """Everything that claims are judged by."""

    models: Sequence[ModelRow]
    trained: Sequence[TrainedRow]
    fisher: Sequence[FisherRow]

    def of(self, listed_as: str) -> list[ModelRow]:
        """The random-init models that the paper lists as this kind."""
        return [row for row in self.models if row.listed_as == listed_as]


def judge(rows: Rows) -> list[Claim]:
    """Every claim with its verdict.

    Args:
        rows: of the table.

    Returns:
        The claims, the paper's first; those that no row is about are ``not_tested``.
    """
    claims = []
    for name, says, theirs, judgement in _CLAIMS:
        verdict, ours = judgement(rows) or ("not_tested", "no such model was run")
        claims.append(Claim(name=name, says=says, theirs=theirs, ours=ours, verdict=verdict))
    return claims


def worst_verdict(verdicts: Sequence[str]) -> str:
    """The worst of several verdicts of a trace; empty where there is none."""
    return min(verdicts, key=_WORST_FIRST.index, default="")


def share(passed: int, of: int) -> str:
    """The verdict on a claim about every one of several: confirmed, partly, or refuted where none passed."""
    return "confirmed" if passed == of else "refuted" if passed == 0 else "partly"


def _kernel(rows: Rows) -> Judgement | None:
    found = rows.of("layernorm")
    words = []
    for dtype in _dtypes(found):
        same = [row for row in found if row.dtype == dtype]
        mean = sum(row.alignment_mean for row in same) / len(same)
        words.append(
            f"{sum(map(_is_bottom, same))}/{len(same)} in {dtype}: |cos| {min(row.alignment for row in same):.6f} at "
            f"least, {mean:.6f} on average"
        )
    finest = _finest(found)
    return (share(sum(map(_is_bottom, finest)), len(finest)), "; ".join(words)) if found else None


def _is_bottom(row: ModelRow) -> bool:
    return row.alignment >= ALIGNED and row.protocol == "ok"


def _no_kernel(rows: Rows) -> Judgement | None:
    found = _finest(rows.of("rmsnorm"))
    if not found:
        return None
    passed = sum(row.alignment <= _RANDOM_DEVIATIONS * row.hidden_size**-0.5 for row in found)
    mean = sum(row.alignment_mean for row in found) / len(found)
    level = sum(row.random_level for row in found) / len(found)
    return share(passed, len(found)), (
        f"{passed}/{len(found)}: |cos| {mean:.4f} on average, {max(row.alignment for row in found):.4f} at most; "
        f"a random direction has {level:.4f}"
    )


def _gain(rows: Rows) -> Judgement | None:
    tried = [row for row in _finest(rows.of("layernorm")) if row.alignment_redrawn is not None]
    if not tried:
        return None
    right = [row.alignment_redrawn or 0.0 for row in tried]
    wrong = [row.uniform_redrawn or 0.0 for row in tried]
    passed = sum(r >= ALIGNED and w < _FAR_FROM_ALIGNED for r, w in zip(right, wrong, strict=True))
    return share(passed, len(tried)), (
        f"{passed}/{len(tried)}: gain^-1 {min(right):.6f} at least, 1/sqrt(d) {max(wrong):.3f} at most"
    )


def _residual(rows: Rows) -> Judgement | None:
    found = [row for row in rows.models if row.trace not in {"", "not_applicable"}]
    if not found:
        return None
    counts = Counter(row.trace for row in found)
    ratios = [row.smallest_step_ratio for row in found if row.smallest_step_ratio is not None]
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in reversed(_WORST_FIRST) if counts[verdict])
    lowest = f"; smallest step ratio {min(ratios):.3f}" if ratios else ""
    verdict = "partly" if counts["eased"] and counts.keys() <= {"eased", "preserved"} else None
    return verdict or share(counts["preserved"], len(found)), f"{words}{lowest}"


def _classification(rows: Rows) -> Judgement | None:
    found = _finest([row for row in rows.models if row.listed_as and row.kind_read])
    if not found:
        return None
    right = sum(row.kind_read == row.kind_seen for row in found)
    return share(right, len(found)), f"{right}/{len(found)}: kind by the parameters = kind by the forward pass"


def _fisher(rows: Rows) -> Judgement | None:
    found = [row for row in rows.fisher if row.kind == "layernorm"]
    if not found:
        return None
    dead = sum(row.is_dead for row in found)
    largest = max(row.ratio for row in found)
    others = [row.ratio for row in rows.fisher if row.kind != "layernorm"]
    control = f"; without a kernel {min(others):.2g} at least" if others else ""
    return share(dead, len(found)), f"{dead}/{len(found)}: F(dead)/F(random) {largest:.0e} at most{control}"


def _depth(rows: Rows) -> Judgement | None:
    changes = [(row, row.deepening) for row in rows.trained if row.kind == "layernorm" and row.deepening is not None]
    if not changes:
        return None
    deeper = sum(change > _UNCHANGED for _, change in changes)
    return share(deeper, len(changes)), "decades (of them by the gain): " + ", ".join(
        f"{row.model} {change:+.1f} ({'∞' if row.gain_decades is None else format(row.gain_decades, '+.1f')})"
        for row, change in changes
    )


def _further(rows: Rows) -> Judgement | None:
    found = [row for row in rows.trained if row.kind == "layernorm"]
    if not found:
        return None
    more = sum(row.dead > row.dead_twin for row in found)
    return share(more, len(found)), f"{more}/{len(found)}: " + ", ".join(
        f"{row.model} {row.dead} ({row.algebraic_dead} by the gain, {row.learned_dead} learned; twins {row.dead_twin})"
        for row in found
    )


def _dtypes(rows: Sequence[ModelRow]) -> list[str]:
    """The dtypes that models ran in, the finest first."""
    return sorted({row.dtype for row in rows}, key=_FINEST_FIRST.index)


def _finest(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """One row a model, of the finest dtype that it ran in."""
    best: dict[str, ModelRow] = {}
    for row in sorted(rows, key=lambda row: _FINEST_FIRST.index(row.dtype)):
        best.setdefault(row.model, row)
    return list(best.values())


_CLAIMS: tuple[tuple[str, str, str, Callable[[Rows], Judgement | None]], ...] = (
    (
        "kernel",
        "At random init, the bottom direction of a LayerNorm model's output is gain^-1",
        "9/9: |cos| >= 0.9999, mean 0.99999",
        _kernel,
    ),
    ("no_kernel", "RMSNorm models have no such direction", "5/5: |cos| 0.015 on average", _no_kernel),
    (
        "residual",
        "The residual stream's smallest singular value survives every block at random init",
        "preserved, step ratios >= 1; Gemma4-31B on several modalities excepted",
        _residual,
    ),
    ("classification", "The parameters alone tell which of the two a model is", "all models", _classification),
    ("fisher", "Along dead directions of the parameters, directional Fisher information vanishes", "0", _fisher),
    ("depth", "Training deepens the dead direction", "about a thousandfold: 3 decades", _depth),
    ("further", "Training opens further dead directions", "yes", _further),
    (
        "gain",
        "It is the gain that matters: redrawn, gain^-1 stays the bottom direction and 1/sqrt(d) is not",
        "",
        _gain,
    ),
)
