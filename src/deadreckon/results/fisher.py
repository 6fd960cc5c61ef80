"""Fisher information along a norm's dead direction in parameter space: the result of ``fisher``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deadreckon.results.measurement import Environment
from deadreckon.results.reading import FileStamp
from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class GaugeStep:
    """What finite steps of one size did to the outputs; None where these are no longer finite.

    Attributes:
        step: size, in units of the norm of the parameters that move.
        max_logit_change: largest change of a logit (hidden states: of an entry) along the step with its remedy.
        kl: mean Kullback-Leibler divergence a token, nats, likewise.
        rounding: the largest change that the rounding of the moved norm and readers makes by itself.
        naive_max_logit_change: largest change along the weights alone.
        naive_kl: divergence likewise.
    """

    step: float
    max_logit_change: float | None
    kl: float | None
    rounding: float
    naive_max_logit_change: float | None
    naive_kl: float | None


@dataclass(frozen=True, kw_only=True)
class FisherSite:
    """A reader of a norm: directional Fisher information per token, along steps of Frobenius norm 1.

    Attributes:
        site: head, or the module path of the reader; several that move together are joined by " + ".
        readers: their module paths.
        norm: module path of the norm that feeds it.
        norm_kind: layernorm | rmsnorm.
        has_kernel: whether the covariance of the norm's output has a kernel; where it has none the same construction
            with gain^-1 is a control.
        constant: c = w.shift, what every token reads along w.
        remedy: what takes the constant away: bias | shift (of the norm, all its readers along) | nothing (c is zero) |
            none (there is no way).
        virtual: whether the weight serves elsewhere too (tied), so that the step is one of an untied copy, and counts
            nothing in the census.
        closed_form: whether norm and head alone were run, without derivatives of the model.
        dead: along the kernel direction with its remedy; None where there is none.
        naive: along its weights alone.
        naive_expected: what `naive` is if every token reads the same: c^2 E Var_p(a), a the weights' left vectors.
        random: along Gaussian directions in the tensors of `dead`.
        ratio: dead / median of random; None without `dead`.
        naive_ratio: naive / median of random.
        floor: what rounding alone makes of `ratio`.
        is_dead: whether `ratio` is at its floor.
        gauge: finite steps.
        is_gauge: whether no finite step changed the outputs by more than rounding; None where none was taken.
        naive_is_gauge: the same of the weights alone.
        says: the site in words.
    """

    site: str
    readers: list[str]
    norm: str
    norm_kind: str
    has_kernel: bool
    constant: float
    remedy: str
    virtual: bool
    closed_form: bool
    dead: float | None
    naive: float
    naive_expected: float
    random: list[float]
    ratio: float | None
    naive_ratio: float
    floor: float
    is_dead: bool
    gauge: list[GaugeStep]
    is_gauge: bool | None
    naive_is_gauge: bool | None
    says: str

    @property
    def holds(self) -> bool:
        """Whether what the kernel promises was seen; a site that promises nothing holds."""
        promised = self.has_kernel and self.remedy != "none"
        return not promised or (self.is_dead and self.is_gauge is not False)


@dataclass(frozen=True, kw_only=True)
class Fisher(Record):
    """Directional Fisher information and finite steps at readers of norms.

    Attributes:
        revision: commit of the model, where it has one.
        files: of the checkpoint.
        data: what the model was run on.
        skipped_inputs: inputs that could not be read and were left out.
        seed: of random weights, inputs and directions.
        affine: how gains and shifts were redrawn, or null.
        environment: machine and libraries.
        metric: softmax (of logits) | gaussian (of the last hidden state, unit variance).
        tokens: predictions that the expectation runs over.
        draws: random directions a site.
        sites: in the model's order.
        holds: whether what each kernel promises was seen.
        warnings: what to know of the numbers.
        seconds: wall time, imports not included.
    """

    kind_of_record: ClassVar[str] = "deadreckon.fisher/1"

    revision: str | None
    files: list[FileStamp]
    data: str
    skipped_inputs: int
    seed: int
    affine: str | None
    environment: Environment
    metric: str
    tokens: int
    draws: int
    sites: list[FisherSite]
    holds: bool
    warnings: list[str]
    seconds: float

    def headline(self) -> list[tuple[str, str]]:
        """How many sites there are, and whether they are dead."""
        kernels = [site for site in self.sites if site.has_kernel and site.remedy != "none"]
        dead = sum(site.holds for site in kernels)
        rows = [("model", self.model), ("metric", self.metric)]
        rows += [("dead as predicted", f"{dead} of {len(kernels)} sites with a kernel")]
        return rows
