"""``demo``: the main job on two small trained models, one that ends in a LayerNorm and one that ends in an RMSNorm."""

from __future__ import annotations

from collections.abc import Callable

from deadreckon.checkpoint.demo import verify
from deadreckon.results.measurement import Demonstration
from deadreckon.verbs.measure import measure
from deadreckon.verbs.read import read

# Enough tokens for 42 (MiniLM) and 8 (SmolLM2) a dimension, in about a minute each on two cores.
_MODELS = {"demo:minilm": 16384, "demo:smollm2": 4608}


def demo(
    *, twin: int = 1, seed: int = 0, progress: Callable[[str, int, int | None], None] | None = None
) -> Demonstration:
    """Read, verify and compare with random init: all-MiniLM-L6-v2 (LayerNorm) and SmolLM2-135M-Instruct (RMSNorm).

    Args:
        twin: random-init twins a model.
        seed: seed of the twins' weights.
        progress: called with the model, tokens done and tokens wanted.

    Returns:
        What was read and what was measured, model by model.

    Raises:
        UnreachableError: a package that ships a model is not installed.
        InputError: the weights are not those that were published.
    """
    for model in _MODELS:  # first: it fails at once where a model is missing or not the one these words are about
        verify(model.removeprefix("demo:"))
    readings = [read(model) for model in _MODELS]
    measurements = []
    for model, tokens in _MODELS.items():

        def report(done: int, total: int | None, model: str = model) -> None:
            if progress:
                progress(model, done, total)

        measurements.append(measure(model, tokens=tokens, twin=twin, seed=seed, progress=report))
    return Demonstration(model=", ".join(_MODELS), readings=readings, measurements=measurements)
