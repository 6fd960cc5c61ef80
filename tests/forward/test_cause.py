"""The rules that name a cause, from numbers alone, where no module is needed to tell them apart."""

from deadreckon.forward.cause import cause
from deadreckon.results.trace import StreamEvidence

PLAIN = StreamEvidence(
    step_ratio=1e-3, relative_step_ratio=1e-3, before=1.0, after=1e-3, floor=1e-9, correlation=-1.0, write_ratio=1.0,
    remainder=0.0, writes=[], unexplained_write=0.0, scalar=None, scalar_tensor=None, dead_coordinates=[],
    dead_weight=0.0, norm_alignment=None, tokens=[], carriers=None, parameter_bound=None, survives_to=0, last=0.0,
    after_final_norm=None, attributed_to=None,
)  # fmt: skip


def named(**changes):
    return cause(StreamEvidence(**{**vars(PLAIN), **changes}), 0.1)[0]


def test_a_scalar_is_the_cause_only_where_nothing_falls_without_it():
    assert named(scalar=1e-3) == "block_scalar"
    assert named(scalar=0.5) == "branch_cancellation"  # 0.5 makes 1e-3 of nothing that was not gone already
    assert named(scalar=20.0, step_ratio=3.0) == "branch_cancellation"


def test_rounding_is_the_cause_only_where_the_direction_was_no_more_and_is_no_more():
    assert named(before=1e-9, after=2e-9) == "precision_floor"
    assert named(before=1.0, after=2e-9) == "branch_cancellation"
    assert named(before=1e-9, after=3e-9) == "branch_cancellation"
