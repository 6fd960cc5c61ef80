"""The watcher and the table that it wrote: folded rows stand for models of any depth, and nothing is guessed."""

import pytest
import torch
from torch import nn

from deadreckon.checkpoint.anatomy_table import anatomy_of, decode, encode, model_types
from deadreckon.errors import UsageError
from deadreckon.forward.anatomy_watch import watch_anatomy
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_inputs import tiny_inputs

DEEPER = {"gpt2": "n_layer", "bert": "num_hidden_layers", "opt": "num_hidden_layers", "llama": "num_hidden_layers"}


def parts(anatomy):
    return set(anatomy.norms), set(anatomy.writers), set(anatomy.tables), anatomy.tensors, anatomy.output


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("model_type", DEEPER)
@pytest.mark.parametrize("head", [True, False])
def test_a_row_of_the_table_is_what_watching_a_model_of_another_depth_finds(model_type, layers, head):
    model = tiny_model(model_type, head=head, **{DEEPER[model_type]: layers})
    watched = watch_anatomy(model, tiny_inputs(model))
    listed = anatomy_of(model_type, type(model).__name__, model.config.to_dict(), watched.tensors, "here")
    assert parts(listed) == parts(watched)


def test_the_module_is_left_as_it_was():
    model = tiny_model("gpt2", head=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    watch_anatomy(model, tiny_inputs(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Block(nn.Module):
    """A norm with one reader, and the norm's output into `extra`."""

    def __init__(self, extra=None, norm=nn.LayerNorm):
        super().__init__()
        self.embed, self.norm, self.read = nn.Embedding(20, 8), norm(8), nn.Linear(8, 8)
        self.last, self.head, self.extra = nn.LayerNorm(8), nn.Linear(8, 20, bias=False), extra

    def forward(self, input_ids):
        x = self.embed(input_ids)
        y = self.norm(x)
        x = x + torch.tanh(self.read(y)) + (0 if self.extra is None else self.extra(y))
        return {"logits": self.head(self.last(x))}


@pytest.mark.parametrize(
    ("extra", "norm", "closed", "mean_closed"),
    [
        (None, nn.LayerNorm, True, True),
        (torch.sin, nn.LayerNorm, False, False),
        (lambda y: y, nn.LayerNorm, False, True),
        (None, nn.RMSNorm, True, True),
    ],
)
def test_what_else_sees_a_norm_is_noticed(extra, norm, closed, mean_closed):
    model = Block(extra, norm)
    anatomy = watch_anatomy(model, {"input_ids": torch.arange(12)[None]})
    site = next(site for site in anatomy.norms if site.name == "norm")
    assert (site.closed, site.mean_closed) == (closed, mean_closed)
    assert [(reader.weight, reader.free) for reader in site.readers] == [("read.weight", True)]
    # tanh sees the mean of what the reader writes; only the embedding and the identity path are free of it.
    assert "read.weight" not in {writer.weight for writer in anatomy.writers}
    assert (anatomy.tables == ("embed.weight",)) == (norm is nn.LayerNorm)


def test_a_reader_that_is_read_elsewhere_is_not_free():
    model = Block()
    model.head.weight = model.embed.weight
    anatomy = watch_anatomy(model, {"input_ids": torch.arange(12)[None]})
    assert not next(site for site in anatomy.norms if site.name == "last").readers[0].free
    assert anatomy.tables == ()
    assert [w.freedom for w in anatomy.writers if w.softmax] == ["entries"]


def test_folding_undoes_itself():
    model = tiny_model("gpt_neox", head=True)
    anatomy = watch_anatomy(model, tiny_inputs(model))
    assert parts(decode(encode(anatomy), anatomy.tensors)) == parts(anatomy)


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        ("mamba", {}, "no anatomy known for 'mamba'"),
        ("gpt2", {}, "not there"),
    ],
)
def test_what_is_not_known_is_refused(model_type, config, message):
    with pytest.raises(UsageError, match=message):
        anatomy_of(model_type, None, config, {"wte.weight": (5, 4)}, "here")


def test_a_setting_that_is_not_known_is_refused():
    assert "falcon" in model_types()
    with pytest.raises(UsageError, match="new_decoder_architecture"):
        anatomy_of(
            "falcon", None, {"new_decoder_architecture": True, "parallel_attn": False, "bias": False}, {}, "here"
        )
