import pytest
import torch
from torch import nn

from deadreckon.errors import UsageError
from deadreckon.forward.capture import capture


class InPlace(nn.Module):
    """A block that spoils what its norm read and what it returned, as some models do."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x, times=1):
        for _ in range(times):
            y = self.norm(x)
            x *= 0
            x += y
            y *= 1000
        return y


def test_what_follows_cannot_change_what_was_captured():
    model, x = InPlace(), torch.randn(5, 4)
    before = x.clone()
    with capture(model.norm, "norm") as captured:
        model(x)
        inputs, outputs = captured.take()
    assert torch.equal(inputs, before)
    assert torch.equal(outputs, model.norm(before))


def test_the_last_firing_counts():
    model, x = InPlace(), torch.randn(5, 4)
    with capture(model.norm, "norm") as captured:
        model(x, times=3)
        inputs, outputs = captured.take()
    assert torch.equal(outputs, model.norm(inputs))


def test_hooks_leave_with_the_context_also_after_an_error():
    model = InPlace()
    with pytest.raises(RuntimeError), capture(model.norm, "norm"):
        raise RuntimeError
    assert not model.norm._forward_hooks
    assert not model.norm._forward_pre_hooks


def test_a_module_that_did_not_run_is_an_error():
    model = InPlace()
    with (
        capture(model.norm, "blocks.3.norm") as captured,
        pytest.raises(UsageError, match=r"blocks\.3\.norm did not run"),
    ):
        captured.take()


def test_inputs_given_by_keyword_are_seen():
    class Keyword(nn.Module):
        def forward(self, *, hidden_states):
            return hidden_states + 1

    module = Keyword()
    with capture(module, "m") as captured:
        module(hidden_states=torch.zeros(2, 3))
        inputs, outputs = captured.take()
    assert (inputs == 0).all()
    assert (outputs == 1).all()
