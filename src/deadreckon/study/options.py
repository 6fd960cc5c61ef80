"""The options of every verb as a specification gives them: those of the Python function, less what no file can hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import NODEFAULT, Meta, Struct, structs, to_builtins

from deadreckon.study.resources import Resources

Count = Annotated[int, Meta(ge=1)]


class VerbOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of every verb.

    Attributes:
        resources: what one task of this verb takes, where it is not what all take.
    """

    resources: Resources | None = None

    def given(self) -> dict[str, Any]:
        """Keyword arguments for the verb: what differs from its defaults."""
        fields = [field for field in structs.fields(self) if field.name != "resources"]
        values = {field.name: to_builtins(getattr(self, field.name)) for field in fields}
        return {field.name: values[field.name] for field in fields if values[field.name] != _default(field)}


class ReadOptions(VerbOptions, frozen=True, kw_only=True):
    """Options of ``read``.

    Attributes:
        norm: another norm, or all.
        kind: layernorm | rmsnorm, where the files do not tell.
        gain_offset: what the module adds to the stored gain, where the files do not tell.
        tau: an eigenvalue is dead at or below tau times their mean.
        stream: bound the coordinates of the residual stream too.
    """

    norm: str | None = None
    kind: str | None = None
    gain_offset: float | None = None
    tau: float = 1e-6
    stream: bool = False


class ClassifyOptions(VerbOptions, frozen=True, kw_only=True):
    """Options of ``classify``.

    Attributes:
        functional: also load each model and run its norm alone on shifted inputs.
    """

    functional: bool = False


class CensusOptions(VerbOptions, frozen=True, kw_only=True):
    """Options of ``census``.

    Attributes:
        emit: FAMILY:INDEX, a direction to keep with the vectors.
    """

    emit: str | None = None


class ForwardOptions(VerbOptions, frozen=True, kw_only=True):
    """Options of all verbs that run a model.

    Attributes:
        tokens: how many tokens to take; by default a multiple of d.
        seed: of random weights and inputs; not together with seeds.
        data: auto | text | images | audio | random; not together with the data of the whole specification.
        text: text files.
        images: files, folders, or hf:NAME[:SPLIT].
        audio: likewise.
        skip_bad: leave out images and sound that cannot be read, and count them.
        affine: lognormal:SIGMA redraws gains and shifts of random models and twins.
        dtype: dtype to load in; auto keeps the stored one.
        device: auto, cpu, cuda or cuda:N.
        device_map: spread the model over devices: auto, balanced, …, or module path -> device.
        max_memory: most weights a device may hold, e.g. cpu=8GB,0=40GB.
        batch_size: sequences or images a forward; by default memory decides.
        trust_remote_code: whether code that comes with a checkpoint may run.
    """

    tokens: Count | None = None
    seed: int = 0
    data: Literal["auto", "text", "images", "audio", "random"] = "auto"
    text: list[str] = []
    images: list[str] = []
    audio: list[str] = []
    skip_bad: bool = False
    affine: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | dict[str, str | int] | None = None
    max_memory: str | dict[str, str | int] | None = None
    batch_size: Count | None = None
    trust_remote_code: bool = False


class MeasureOptions(ForwardOptions, frozen=True, kw_only=True):
    """Options of ``measure``.

    Attributes:
        twin: how many random-init twins to measure too.
        norm: another norm, by module path or gain tensor.
        solver: eigh: whole spectrum; bottom: its certified bottom end; svd: of the outputs themselves.
        tau: dead below this fraction of the mean variance.
        kfac: conclude on the Kronecker factor of the norm's readers, too.
    """

    twin: Annotated[int, Meta(ge=0)] = 0
    norm: str | None = None
    solver: str = "eigh"
    tau: float = 1e-6
    kfac: bool = False


class TraceOptions(ForwardOptions, frozen=True, kw_only=True):
    """Options of ``trace``.

    Attributes:
        blocks: indices of the blocks to trace; by default all.
        blocks_path: module path of the list of blocks, if another is meant.
        bottom: smallest singular values to keep, with directions.
        memory: most bytes that Grams take.
        collapse_ratio: step ratios below it are events.
    """

    blocks: list[int] | None = None
    blocks_path: str | None = None
    bottom: Count = 1
    memory: Count | None = None
    collapse_ratio: float = 0.1


class FisherOptions(ForwardOptions, frozen=True, kw_only=True):
    """Options of ``fisher``.

    Attributes:
        site: head, all, or dotted parts of module paths.
        draws: random directions a site.
        gauge: whether to take finite steps.
    """

    site: str | list[str] = "head"
    draws: Annotated[int, Meta(ge=8)] = 8
    gauge: bool = True


OPTIONS: dict[str, type[VerbOptions]] = {
    "read": ReadOptions,
    "classify": ClassifyOptions,
    "census": CensusOptions,
    "measure": MeasureOptions,
    "trace": TraceOptions,
    "fisher": FisherOptions,
}
"""Verb -> its options."""


def _default(field: structs.FieldInfo) -> Any:
    return field.default if field.default_factory is NODEFAULT else field.default_factory()
