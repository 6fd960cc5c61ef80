"""Verdicts follow from the figures, and turn with them."""

import pytest
from made_records import classifications, fisher, measurement, trace

from deadreckon.render.claims import claims
from deadreckon.render.gather import gather

INIT, ABSENT, GAIN, ZERO, TRAINED, DEEPER, STREAM, TOLD, FISHER = (
    "At random initialisation",
    "An RMSNorm has no",
    "It is the gain",
    "The variance along it is zero",
    "After training",
    "Training deepens",
    "The identity path",
    "The parameters alone",
    "Steps of the weights",
)


def verdicts(*records):
    return {claim.claim: claim for claim in claims(gather(records))}


def verdict(start, *records):
    found = [claim for claim in claims(gather(records)) if claim.claim.startswith(start)]
    assert len(found) == 1
    return found[0]


def redrawn(**changes):
    return measurement(affine="lognormal:0.5", **changes)


def failed(made):
    return type(made)(**{**vars(made), "protocol": type(made.protocol)(**{**vars(made.protocol), "status": "failed"})})


@pytest.mark.parametrize(
    ("start", "holding", "failing"),
    [
        (INIT, measurement(), measurement(subspace_alignment=0.9998)),
        (ABSENT, measurement(kind="rmsnorm"), measurement(kind="rmsnorm", alignment=0.9)),
        (ABSENT, measurement(kind="rmsnorm"), measurement(kind="rmsnorm", lambda_dead_at_floor=True)),
        (GAIN, redrawn(), redrawn(alignment_uniform=1.0)),
        (GAIN, redrawn(), redrawn(subspace_alignment=0.99)),
        (ZERO, measurement(), failed(measurement())),
        (TRAINED, measurement("org/trained"), measurement("org/trained", subspace_alignment=0.5)),
        (STREAM, trace(), trace(collapsed=True)),
        (TOLD, classifications("a"), classifications("a", kind="undetermined")),
        (FISHER, fisher(), fisher(dead=False)),
    ],
)
def test_a_verdict_turns_with_its_figure(start, holding, failing):
    assert verdict(start, holding).verdict == "holds"
    assert verdict(start, failing).verdict == "fails"
    assert verdict(start, holding, failing).verdict == "in part"


def test_counts_are_of_sets_of_weights_twins_included():
    trained = measurement("demo:minilm", dead=3, twins=2)
    assert verdict(INIT, trained).ours == "2 of 2 sets of weights at |cos| ≥ 0.9999, mean 1.000000"
    assert "2 further dead directions, 2 of them read from the gains" in verdict(TRAINED, trained).ours
    assert verdict(DEEPER, trained).ours.startswith("1 of 1 model; +3.0 decades")


def test_a_classification_that_the_forward_pass_contradicts_does_not_hold():
    ran = measurement("a", kind="rmsnorm")
    assert verdict(TOLD, classifications("a"), ran).verdict == "fails"
    assert verdict(TOLD, classifications("a", kind="rmsnorm"), ran).verdict == "holds"
    # A measurement that is about another norm contradicts nothing.
    assert verdict(TOLD, classifications("a"), failed(ran)).verdict == "holds"


def test_claims_without_results_are_not_made():
    assert [claim.claim for claim in claims(gather([trace()]))] == [verdict(STREAM, trace()).claim]
    apart = {**vars(trace()), "verdict": "not_applicable"}
    assert not claims(gather([type(trace())(**apart)]))


def test_published_figures_stand_beside_ours():
    assert verdict(INIT, measurement()).theirs == "9 of 9 models at |cos| ≥ 0.9999, mean 0.99999"
    assert verdict(GAIN, redrawn()).theirs == "–"
