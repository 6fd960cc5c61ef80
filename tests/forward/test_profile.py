"""Ratios, statuses, falls and verdicts of a stream, from numbers alone."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from deadreckon.forward.profile import falls, steps, verdict, worst
from deadreckon.forward.stream import NodeSpectrum

RATIO = 0.1
FLOOR = 1e-9


def node(index, low, mean=1.0, floor=FLOOR, error=0.0):
    none = torch.zeros(1, 1)
    return NodeSpectrum(index, low, error, floor, mean, 10 * mean, none, none[0], whole=True)


def profile(lows, means=None, floor=FLOOR, start=-1):
    means = [1.0] * len(lows) if means is None else means
    return steps([node(start + k, low, mean, floor) for k, (low, mean) in enumerate(zip(lows, means, strict=True))])


def judged(lows, means=None, **options):
    found = profile(lows, means, **options)
    events = falls(found, RATIO)
    return verdict(found, events)[0], [(e.index, e.kind, e.attributed_to) for e in events]


positive = st.floats(1e-4, 1e4)


# Ratios and statuses.


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=12))
def test_ratios_are_those_of_neighbours_and_of_the_first(values):
    lows, means = zip(*values, strict=True)
    found = profile(lows, means)
    assert (found[0].ratio, found[0].relative, found[0].cumulative) == (None, None, None)
    for k, step in enumerate(found[1:], 1):
        assert step.status == "ok"
        assert step.ratio == pytest.approx(lows[k] / lows[k - 1])
        assert step.relative == pytest.approx(lows[k] / means[k] / (lows[k - 1] / means[k - 1]))
    assert math.prod(step.ratio for step in found[1:]) == pytest.approx(found[-1].cumulative)


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=12), st.integers(-20, 20))
@example([(20.0, 1.0), (2.0, 1.0)], 3)  # a ratio that is the limit itself
def test_a_change_of_the_whole_scale_changes_nothing(values, doublings):
    lows, means = zip(*values, strict=True)
    scale = 2.0**doublings  # no product is rounded
    other = judged([scale * low for low in lows], [scale * mean for mean in means], floor=scale * FLOOR)
    assert other == judged(lows, means)


def test_nodes_at_the_floor_are_rank_limited_before_the_first_that_is_not_and_lost_after_it():
    found = profile([0.5 * FLOOR, 2 * FLOOR, 2.1 * FLOOR, 1.0, FLOOR, 1.0, 1.0])
    assert [step.status for step in found] == [
        "rank_limited",
        "rank_limited",
        "ok",
        "ok",
        "at_floor",
        "ok",
        "ok",
    ]
    # Never a ratio to what is only a floor, and none of two floors.
    assert [step.ratio is None for step in found] == [True, True, True, False, False, True, False]
    assert all(step.cumulative is None for step in found)


@given(st.lists(st.sampled_from([0.0, FLOOR, 2 * FLOOR, 1e-3, 1.0]), min_size=1, max_size=10))
def test_there_is_a_ratio_exactly_where_the_node_before_is_above_its_floor(lows):
    found = profile(lows)
    for before, step in pairwise(found):
        assert (step.ratio is not None) == (before.status == "ok") == (before.spectrum.sigma_min > 2 * FLOOR)
        assert not (before.status != "ok" and step.status != "ok" and step.ratio is not None)
    assert ("rank_limited" in {step.status for step in found}) == (lows[0] <= 2 * FLOOR)


def test_nodes_that_are_not_neighbours_have_no_ratio():
    found = steps([node(0, 1.0), node(1, 0.5), node(5, 1e-6), node(6, 1e-6)])
    assert [step.ratio for step in found] == [None, 0.5, None, 1.0]
    assert [step.cumulative for step in found] == [None] * 4  # what enters the first block was not measured
    assert falls(found, RATIO) == []


# Falls.


def test_a_rescaling_takes_all_directions_along():
    assert judged([1.0, 1e-4, 1e-4], [1.0, 1e-4, 1e-4]) == ("rescaled", [(0, "rescaled", None)])


def test_a_collapse_takes_one():
    assert judged([1.0, 1e-4, 1e-4]) == ("collapsed", [(0, "collapsed", None)])


def test_a_fall_to_the_floor_is_a_collapse_whatever_its_ratio():
    assert judged([2.5 * FLOOR, 1.5 * FLOOR]) == ("collapsed", [(0, "collapsed", None)])
    found = steps([node(-1, 1e-3), node(0, 1e-2, 1e3, floor=1e-2)])  # the floor rises above it
    assert found[1].ratio > 1
    assert [(e.index, e.kind) for e in falls(found, RATIO)] == [(0, "collapsed")]


def test_growth_of_the_others_is_an_event_and_no_verdict():
    assert judged([1.0, 1.0], [1.0, 1e3]) == ("preserved", [(0, "rescaled", None)])
    assert judged([1.0, 0.5], [1.0, 1e3]) == ("eased", [(0, "rescaled", None)])


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_what_drowns_after_a_rescaling_is_attributed_to_it(gap):
    # Scaled to 1e-6, kept there for a while, then the others are written anew.
    lows = [1.0] + [1e-6] * gap + [1e-6]
    means = [1.0] + [1e-6] * gap + [1.0]
    assert judged(lows, means) == ("rescaled", [(0, "rescaled", None), (gap, "collapsed", 0)])


def test_what_drowns_after_the_stream_has_regained_its_scale_is_not():
    lows, means = [1.0, 1e-3, 1.0, 1.0], [1.0, 1e-3, 1.0, 1e3]
    assert judged(lows, means)[1] == [(0, "rescaled", None), (2, "rescaled", None)]


def test_drowning_by_and_by_is_attributed_until_the_scale_is_regained():
    lows, means = [1.0, 1e-6, 1e-6, 1e-6, 1e-6], [1.0, 1e-6, 1e-4, 1e-2, 1.0]
    assert judged(lows, means)[1] == [(0, "rescaled", None), *((k, "collapsed", 0) for k in (1, 2, 3))]


def test_a_fall_of_its_own_after_a_rescaling_is_not_attributed():
    assert judged([1.0, 1e-3, 1e-6], [1.0, 1e-3, 1e-3]) == (
        "collapsed",
        [(0, "rescaled", None), (1, "collapsed", None)],
    )


def test_of_two_rescalings_the_nearer_is_meant_and_the_scale_before_the_first():
    lows = [1.0, 1e-3, 1e-6, 1e-6, 1e-6]
    means = [1.0, 1e-3, 1e-6, 1e-2, 1.0]
    assert judged(lows, means)[1] == [
        (0, "rescaled", None),
        (1, "rescaled", None),
        (2, "collapsed", 1),
        (3, "collapsed", 1),
    ]


@given(st.integers(4, 60), st.floats(1.0, 3.0), st.floats(0.2, 5.0))
def test_a_smooth_growth_is_no_event(blocks, decades, low):
    growth = [10 ** (decades * k / blocks) for k in range(blocks + 1)]
    assert judged([low * g for g in growth], growth) == ("preserved", [])
    # Nor where the smallest stays behind and the others grow by less than tenfold a block.
    assert judged([low] * (blocks + 1), growth) == ("preserved", [])


@given(st.lists(st.floats(0.11, 10), min_size=1, max_size=10), st.floats(0.01, 0.1))
def test_a_smaller_collapse_ratio_finds_no_more(ratios, smaller):
    lows = [math.prod(ratios[:k]) for k in range(len(ratios) + 1)]
    found = profile(lows)
    assert falls(found, smaller) == falls(found, RATIO) == []


# The verdict, and the block it names.


def test_verdicts():
    assert judged([1.0, 1.0, 2.0])[0] == "preserved"
    assert judged([1.0, 0.9, 2.0])[0] == "eased"
    assert judged([1.0, 0.101, 2.0])[0] == "eased"
    assert judged([FLOOR, 0.0, FLOOR]) == ("not_applicable", [])
    assert judged([1.0]) == ("not_applicable", [])


def test_what_is_known_only_to_its_error_is_not_said_to_fall():
    by_error = steps([node(-1, 1.0, error=0.02), node(0, 0.99)])
    by_floor = steps([node(-1, 1.0, floor=0.01), node(0, 0.99, floor=0.01)])
    surely = steps([node(-1, 1.0, error=0.005), node(0, 0.99)])
    assert [verdict(found, [])[0] for found in (by_error, by_floor, surely)] == ["preserved", "preserved", "eased"]


def test_a_collapse_outweighs_a_rescaling():
    lows, means = [1.0, 1e-3, 1e-3, 1e-6], [1.0, 1e-3, 1e-3, 1e-3]
    assert judged(lows, means)[0] == "collapsed"


def test_the_worst_block_has_the_smallest_step():
    assert worst(profile([1.0, 0.5, 0.4, 0.1, 0.1])) == 2
    assert worst(profile([0.0, 0.0])) is None
    assert worst(profile([0.0, 1.0])) is None


def test_the_words_name_block_and_ratio():
    found = profile([1.0, 1.0, 1e-3])
    why = verdict(found, falls(found, RATIO))[1]
    assert "block 1" in why
    assert "0.001" in why
