"""Verdicts: what confirms a claim, what refutes it, and what is not about it."""

from dataclasses import replace

import pytest

from deadreckon.results.claims import Rows, judge, worst_verdict
from deadreckon.results.measurement import GapFigure
from deadreckon.results.reproduction import FisherRow, ModelRow, TrainedRow

LAYERNORM = ModelRow(
    model="a", parameters=None, listed_as="layernorm", kind_read="layernorm", kind_seen="layernorm", hidden_size=400,
    blocks=4, dtype="float32", data="random token ids", tokens_per_dimension=4.0, seeds=[0], alignment=0.99999,
    alignment_mean=0.99999, alignment_redrawn=0.99999, uniform_redrawn=0.9, random_level=0.04, dead_share=1e-13,
    dead_share_float64=1e-31, protocol="ok", trace="preserved", smallest_step_ratio=1.01, events=[], seconds=1.0,
)  # fmt: skip
RMSNORM = replace(
    LAYERNORM, model="b", listed_as="rmsnorm", kind_read="rmsnorm", kind_seen="rmsnorm", alignment=0.1,
    alignment_mean=0.05, alignment_redrawn=0.2, dead_share=1.0, dead_share_float64=1.0,
)  # fmt: skip
TRAINED = TrainedRow(
    model="c", kind="layernorm", hidden_size=400, dtype="float32", data="text", tokens_per_dimension=8.0,
    subspace_alignment=1.0, depth_decades=16.0, deepening=3.0, gain_decades=2.9, dead=3, dead_twin=1, algebraic_dead=2,
    learned_dead=1, effective_rank_change=GapFigure(change=-1.0, smallest=-1.0, largest=-1.0), trace="preserved",
)  # fmt: skip
DEAD = FisherRow(model="a", kind="layernorm", is_dead=True, ratio=1e-14)
ALIVE = FisherRow(model="b", kind="rmsnorm", is_dead=False, ratio=0.3)


def verdicts(models=(LAYERNORM, RMSNORM), trained=(TRAINED,), fisher=(DEAD, ALIVE)):
    return {claim.name: claim.verdict for claim in judge(Rows(models, trained, fisher))}


def test_what_is_as_claimed_is_confirmed():
    assert set(verdicts().values()) == {"confirmed"}


def test_without_rows_nothing_is_tested():
    assert set(verdicts((), (), ()).values()) == {"not_tested"}


@pytest.mark.parametrize(
    ("claim", "rows"),
    [
        ("kernel", {"models": [replace(LAYERNORM, alignment=0.99989)]}),
        ("kernel", {"models": [replace(LAYERNORM, protocol="failed")]}),
        ("no_kernel", {"models": [replace(RMSNORM, alignment=4.1 / 20)]}),
        ("residual", {"models": [replace(LAYERNORM, trace="collapsed", smallest_step_ratio=1e-9)]}),
        ("classification", {"models": [replace(LAYERNORM, kind_read="rmsnorm")]}),
        ("gain", {"models": [replace(LAYERNORM, alignment_redrawn=0.9)]}),
        ("gain", {"models": [replace(LAYERNORM, uniform_redrawn=0.9999)]}),
        ("fisher", {"fisher": [replace(DEAD, is_dead=False, ratio=1e-3)]}),
        ("depth", {"trained": [replace(TRAINED, deepening=0.05)]}),
        ("further", {"trained": [replace(TRAINED, dead=1)]}),
    ],
)
def test_each_claim_can_be_refuted_and_by_its_own_rows_alone(claim, rows):
    found = verdicts(**rows)
    assert found[claim] == "refuted"
    assert [name for name, verdict in found.items() if verdict == "refuted"] == [claim]


def test_a_claim_about_every_model_that_fails_for_some_holds_in_part():
    assert verdicts(models=[LAYERNORM, replace(LAYERNORM, model="z", alignment=0.5)])["kernel"] == "partly"
    assert verdicts(models=[LAYERNORM, replace(LAYERNORM, model="z", trace="eased")])["residual"] == "partly"


def test_a_model_is_judged_in_its_finest_dtype_and_the_others_are_told():
    coarse = replace(LAYERNORM, dtype="bfloat16", alignment=0.999, alignment_mean=0.999)
    (kernel,) = (c for c in judge(Rows([coarse, LAYERNORM], [], [])) if c.name == "kernel")
    assert kernel.verdict == "confirmed"
    assert "1/1 in float32" in kernel.ours
    assert "0/1 in bfloat16" in kernel.ours
    assert verdicts(models=[coarse])["kernel"] == "refuted"


def test_models_beside_the_list_are_traced_and_not_counted():
    beside = replace(RMSNORM, model="d", listed_as="", kind_read="layernorm", alignment=0.9, trace="collapsed")
    found = verdicts(models=[LAYERNORM, RMSNORM, beside])
    assert (found["no_kernel"], found["classification"]) == ("confirmed", "confirmed")
    assert found["residual"] == "partly"


def test_a_stream_without_an_identity_path_is_not_counted():
    post_norm = replace(LAYERNORM, trace="not_applicable", smallest_step_ratio=0.1)
    assert verdicts(models=[post_norm])["residual"] == "not_tested"
    assert verdicts(models=[post_norm, replace(LAYERNORM, model="z")])["residual"] == "confirmed"


def test_of_several_traces_the_worst_counts():
    assert worst_verdict(["preserved", "eased", "not_applicable"]) == "eased"
    assert worst_verdict(["rescaled", "collapsed"]) == "collapsed"
    assert worst_verdict([]) == ""
