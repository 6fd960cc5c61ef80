"""Read a transformer's dead directions from its parameters, and verify them in one forward pass.

    >>> import deadreckon
    >>> deadreckon.read("demo:minilm").dead_count
    3

Names are imported when they are first used, so importing the package costs nothing and needs neither torch nor
transformers; `measure` does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deadreckon.checkpoint.format import Checkpoint, register_format
    from deadreckon.errors import DeadreckonError
    from deadreckon.forward.spectrum import Eigensolver, register_eigensolver
    from deadreckon.kernel.norm import NormKind, register_norm_kind
    from deadreckon.kernel.subspace import DeadSubspace
    from deadreckon.render.report import Report, report
    from deadreckon.results.census import Census
    from deadreckon.results.diff import Difference
    from deadreckon.results.fisher import Fisher
    from deadreckon.results.measurement import Measurement
    from deadreckon.results.probe import Probe
    from deadreckon.results.reading import Classifications, Reading
    from deadreckon.results.reproduction import Reproduction
    from deadreckon.results.sweep import Sweep, TaskTable
    from deadreckon.results.trace import Trace
    from deadreckon.study.reproduce import reproduce
    from deadreckon.study.sweep import sweep
    from deadreckon.study.table import table
    from deadreckon.verbs.census import census
    from deadreckon.verbs.classify import classify
    from deadreckon.verbs.diff import diff
    from deadreckon.verbs.directions import DeadDirection, DeadDirections, dead_directions, project_out
    from deadreckon.verbs.fisher import fisher
    from deadreckon.verbs.measure import measure
    from deadreckon.verbs.probe import probe
    from deadreckon.verbs.read import read
    from deadreckon.verbs.shards import measure_shard, merge_shards
    from deadreckon.verbs.trace import trace

__version__ = "0.1.0"

_HOMES = {
    "Census": "results.census",
    "Checkpoint": "checkpoint.format",
    "Classifications": "results.reading",
    "DeadDirection": "verbs.directions",
    "DeadDirections": "verbs.directions",
    "DeadSubspace": "kernel.subspace",
    "DeadreckonError": "errors",
    "Difference": "results.diff",
    "Eigensolver": "forward.spectrum",
    "Fisher": "results.fisher",
    "Measurement": "results.measurement",
    "NormKind": "kernel.norm",
    "Probe": "results.probe",
    "Reading": "results.reading",
    "Report": "render.report",
    "Reproduction": "results.reproduction",
    "Sweep": "results.sweep",
    "TaskTable": "results.sweep",
    "Trace": "results.trace",
    "census": "verbs.census",
    "classify": "verbs.classify",
    "dead_directions": "verbs.directions",
    "diff": "verbs.diff",
    "fisher": "verbs.fisher",
    "measure": "verbs.measure",
    "measure_shard": "verbs.shards",
    "merge_shards": "verbs.shards",
    "probe": "verbs.probe",
    "project_out": "verbs.directions",
    "read": "verbs.read",
    "register_eigensolver": "forward.spectrum",
    "register_format": "checkpoint.format",
    "register_norm_kind": "kernel.norm",
    "report": "render.report",
    "reproduce": "study.reproduce",
    "sweep": "study.sweep",
    "table": "study.table",
    "trace": "verbs.trace",
}

__all__ = [
    "Census",
    "Checkpoint",
    "Classifications",
    "DeadDirection",
    "DeadDirections",
    "DeadSubspace",
    "DeadreckonError",
    "Difference",
    "Eigensolver",
    "Fisher",
    "Measurement",
    "NormKind",
    "Probe",
    "Reading",
    "Report",
    "Reproduction",
    "Sweep",
    "TaskTable",
    "Trace",
    "census",
    "classify",
    "dead_directions",
    "diff",
    "fisher",
    "measure",
    "measure_shard",
    "merge_shards",
    "probe",
    "project_out",
    "read",
    "register_eigensolver",
    "register_format",
    "register_norm_kind",
    "report",
    "reproduce",
    "sweep",
    "table",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deadreckon' has no attribute {name!r}")
    value = getattr(import_module(f"deadreckon.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
