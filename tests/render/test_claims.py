"""Verdicts follow from the figures, and turn with them."""

from dataclasses import replace

import pytest
from made_records import classifications, fisher, measurement, reproduction, task, trace

from deadreckon.render.claims import claims
from deadreckon.render.gather import gather


def judged(*records):
    return {claim.name: claim for claim in claims(gather(records))}


def redrawn(**changes):
    return measurement(affine="lognormal:0.5", **changes)


def failed(made):
    return replace(made, protocol=replace(made.protocol, status="failed"))


@pytest.mark.parametrize(
    ("name", "holding", "failing"),
    [
        ("kernel", [measurement()], [measurement(alignment=0.9998)]),
        ("kernel", [measurement()], [failed(measurement())]),
        ("no_kernel", [measurement(kind="rmsnorm")], [measurement(kind="rmsnorm", alignment=0.9)]),
        ("gain", [measurement(), redrawn()], [measurement(), redrawn(alignment_uniform=1.0)]),
        ("residual", [measurement(), trace()], [measurement(), trace(collapsed=True)]),
        ("fisher", [fisher()], [fisher(dead=False)]),
        ("depth", [measurement("a", twins=1)], [measurement("a", twins=1, change=0.0)]),
        ("exact", [measurement()], [failed(measurement())]),
        ("after_training", [measurement("a")], [measurement("a", subspace_alignment=0.5)]),
    ],
)
def test_a_verdict_turns_with_its_figure(name, holding, failing):
    assert judged(*holding)[name].verdict == "confirmed"
    assert judged(*failing)[name].verdict == "refuted"


def test_what_holds_for_some_holds_partly():
    assert judged(measurement("a"), measurement("b", subspace_alignment=0.5))["after_training"].verdict == "partly"
    assert judged(measurement(), failed(measurement("random:b")))["exact"].verdict == "partly"


def test_counts_of_trained_models_and_their_twins():
    found = judged(measurement("demo:minilm", dead=3, twins=2))
    assert "2 further dead directions, 2 of them read from the gains" in found["after_training"].ours
    assert found["exact"].ours.startswith("3 of 3 sets of weights, twins included")
    assert "3 (3 by the gain, 0 learned; twins 1)" in found["further"].ours


def test_of_a_run_the_last_checkpoint_is_judged():
    early = task(measurement("org/run", subspace_alignment=0.5), step=0)
    late = task(measurement("org/run"), step=512)
    assert judged(early, late)["after_training"].ours.startswith("1 of 1 model")
    assert judged(late, early)["after_training"].verdict == "confirmed"


def test_a_kind_that_the_forward_pass_contradicts_is_no_confirmation():
    ran = measurement("a", kind="rmsnorm")
    assert judged(classifications("a", kind="rmsnorm"), ran)["classification"].verdict == "confirmed"
    assert judged(classifications("a"), ran)["classification"].verdict == "refuted"
    assert "classification" not in judged(classifications("a"), failed(ran))
    # A model that was measured and not read says nothing of reading.
    assert "classification" not in judged(measurement())


def test_a_reader_at_which_nothing_is_promised_refutes_nothing():
    made = fisher(dead=False)
    hopeless = replace(made, sites=[replace(made.sites[0], remedy="none"), *fisher().sites])
    assert judged(hopeless)["fisher"].verdict == "confirmed"


def test_claims_without_results_are_not_made():
    assert set(judged(fisher())) == {"fisher"}
    assert not judged(trace())  # of no model that was measured


def test_a_reproduction_has_its_own_verdicts():
    found = judged(reproduction(), measurement(alignment=0.1))
    assert [(c.name, c.verdict) for c in found.values()] == [("kernel", "confirmed"), ("depth", "not_tested")]


@pytest.mark.parametrize(
    "odd",
    [
        measurement(lambda_mean=0.0),
        replace(measurement("a", twins=1), twins=[]),
        measurement(environment=replace(measurement().environment, dtype="int3")),
        replace(trace(), streams=[replace(trace().streams[0], verdict="unheard of")]),
    ],
)
def test_what_cannot_be_compared_is_left_out(odd):
    assert "kernel" not in judged(odd)
    assert judged(odd, measurement("random:other"))["kernel"].verdict == "confirmed"
