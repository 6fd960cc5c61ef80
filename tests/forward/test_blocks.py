"""Residual streams found in models as they are, against what the atlas recorded of every architecture."""

import json

import pytest
import torch
from torch import nn

from deadreckon.checkpoint.atlas import ATLAS_PATH
from deadreckon.errors import UsageError
from deadreckon.forward.batching import Rows
from deadreckon.forward.blocks import find_block_stacks, tapped
from deadreckon.forward.probe import probe_norms
from deadreckon.forward.random_inputs import random_inputs
from deadreckon.forward.stream import kept
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_inputs import tiny_inputs
from deadreckon.forward.tiny_sizes import WIDTH
from deadreckon.forward.watching import redraw

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = json.loads(ATLAS_PATH.read_text(encoding="utf-8"))["rows"]
SAMPLE = [
    "albert",
    "bart",
    "bert",
    "bloom",
    "clip",
    "data2vec-audio",
    "falcon",
    "falcon_h1",
    "gemma2",
    "gemma3n_text",
    "glm4",
    "gpt2",
    "gpt_neox",
    "granitemoe",
    "llama",
    "mamba",
    "nemotron_h",
    "olmo2",
    "opt",
    "phi",
    "qwen3_next",
    "roberta",
    "segformer",
    "t5",
    "vit",
    "vjepa2",
    "whisper",
    "xlnet",
]

# Their blocks are no modules: four lists side by side hold the parts of all.
NO_BLOCKS = {"flaubert", "xlm"}
# The atlas names the list of stages, which change the width: each has a stream of its own.
STAGES = {"dinov3_convnext", "focalnet", "segformer"}
# Two hidden states of one width, of which the atlas takes the first by name and the model's output is made of neither.
UNDECIDED = {"fastspeech2_conformer", "fastspeech2_conformer_with_hifigan", "seamless_m4t", "seamless_m4t_v2"}
# Token ids alone do not reach the towers for images and sound.
WITH_IMAGES = ("gemma3", "llava", "paligemma", "qwen3_vl", "gemma4", "internvl")


def tiny(model_type, **overrides):
    """Gains of a tiny model are redrawn: with all of them 1 a norm of a norm's output would change nothing."""
    model = tiny_model(model_type, **overrides)
    redraw(model, probe_norms(model))
    return model


def differences(model_type):
    model = tiny(model_type)
    return list(compared(find_block_stacks(model, tiny_inputs(model)), model_type, towers=False))


def compared(found, model_type, *, towers):
    """What the streams found say otherwise than the atlas."""
    recorded = [row for row in ROWS[model_type]["stacks"] if row.get("blocks")]
    by_path = {stack.path: stack for stack in found}
    main = recorded[0]["blocks"]
    if not found[-1].path.startswith(main) if model_type in STAGES else found[-1].path != main:
        yield f"the main stream is {found[-1].path}, recorded {main}"
    for row in recorded:
        stack = by_path.get(row["blocks"])
        if stack is None:
            beside = row["role"] in {"vision", "encoder"} and row is not recorded[0]
            if model_type not in STAGES and (towers or not beside):
                yield f"{row['blocks']} was not found"
            continue
        if stack.post_norm != (row.get("placement") == "post"):
            yield f"{stack.path}: {row.get('placement')}, its outputs are made by {stack.norm_output}"
        if row["placement"] == "post" and not all(stack.norm_output):
            yield f"{stack.path}: no norm makes the output of some blocks"


@pytest.mark.parametrize("model_type", SAMPLE)
def test_streams_are_those_of_the_atlas(model_type):
    assert differences(model_type) == []


@pytest.mark.slow
def test_streams_of_every_architecture_are_those_of_the_atlas():
    wrong = {}
    for model_type in ROWS.keys() - NO_BLOCKS - UNDECIDED:
        try:
            found = differences(model_type)
        except UsageError as error:
            if "the installed transformers" in str(error):
                continue
            found = [str(error)]
        if found:
            wrong[model_type] = found
    assert wrong == {}


def test_a_wrong_row_would_be_seen(monkeypatch):
    row = {**ROWS["bert"], "stacks": [{**ROWS["bert"]["stacks"][0], "placement": "pre"}]}
    monkeypatch.setitem(ROWS, "bert", row)
    assert "made by" in differences("bert")[0]
    monkeypatch.setitem(ROWS, "gpt2", ROWS["llama"])
    assert "recorded layers" in differences("gpt2")[0]


@pytest.mark.parametrize("model_type", WITH_IMAGES[:2])
def test_towers_run_where_inputs_reach_them(model_type):
    model = tiny(model_type)
    row = Rows.of(next(random_inputs(model, seed=0, batch_size=1).batches())).take([0])
    found = find_block_stacks(model, row)
    assert list(compared(found, model_type, towers=True)) == []
    assert [stack.role for stack in found] == ["vision", "final"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", WITH_IMAGES[2:])
def test_more_towers(model_type):
    model = tiny(model_type)
    row = Rows.of(next(random_inputs(model, seed=0, batch_size=1).batches())).take([0])
    found = [s for s in find_block_stacks(model, row) if s.role != "audio"]
    assert [stack.role for stack in found] == ["vision", "final"]
    assert found[-1].path == ROWS[model_type]["stacks"][0]["blocks"]


@pytest.mark.parametrize(
    ("model_type", "overrides", "expected"),
    [
        ("bert", {}, "encoder.layer.{}.output.LayerNorm"),
        ("opt", {"do_layer_norm_before": False}, "decoder.layers.{}.final_layer_norm"),
        ("albert", {}, "encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm"),
        ("wav2vec2", {}, "encoder.layers.{}.final_layer_norm"),
        ("opt", {}, None),
        ("olmo2", {}, None),  # norms what it adds, never the sum
        ("gemma2", {}, None),
        ("muse_spark_text", {}, None),  # a gate of one vector makes its blocks' outputs, and is no norm
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_which_norm_makes_the_nodes(model_type, overrides, expected):
    model = tiny(model_type, **overrides)
    main = find_block_stacks(model, tiny_inputs(model))[-1]
    assert main.norm_output == tuple(expected and expected.format(i) for i in range(len(main.blocks)))
    assert main.post_norm == (expected is not None)


def test_roles_and_order():
    def roles(model_type):
        model = tiny(model_type)
        return [(stack.role, stack.path) for stack in find_block_stacks(model, tiny_inputs(model))]

    assert roles("whisper") == [("encoder", "encoder.layers"), ("decoder", "decoder.layers")]
    assert roles("clip") == [("vision", "vision_model.encoder.layers"), ("final", "text_model.encoder.layers")]
    # The predictor runs last, and the last hidden state is the encoder's.
    assert roles("vjepa2") == [("decoder", "predictor.layer"), ("final", "encoder.layer")]


def test_one_layer_that_runs_many_times():
    model = tiny("albert")
    (stack,) = find_block_stacks(model, tiny_inputs(model))
    assert len(stack.blocks) == model.config.num_hidden_layers > len(model.encoder.albert_layer_groups)
    assert len({module for _, module in stack.blocks}) == 1


def test_several_vectors_a_token_lie_beside_each_other():
    """Gemma 3n's stream is (4, rows, tokens, d): a mask of (rows, tokens) must meet the right ones."""
    model = tiny("gemma3n_text")
    ids = torch.arange(10, 34).reshape(2, 12)
    (stack,) = find_block_stacks(model, {"input_ids": ids[:1]})
    assert stack.tokens == 12
    raw, shown = [], []
    handle = stack.blocks[1][1].register_forward_hook(lambda _m, _a, output: raw.append(output.clone()))
    with torch.no_grad(), tapped(stack, lambda index, stream: shown.append(stream.clone()) if index == 1 else None):
        model(input_ids=ids)
    handle.remove()
    assert raw[0].shape == (4, 2, 12, WIDTH)
    assert torch.equal(shown[0], raw[0].permute(1, 2, 0, 3))
    keep = torch.zeros(2, 12, dtype=torch.bool)
    keep[1, 3] = True
    assert torch.equal(kept(shown[0], keep), raw[0][:, 1, 3])


def test_channels_of_convolutions_are_coordinates():
    model = tiny("dinov3_convnext")
    stacks = find_block_stacks(model, tiny_inputs(model))
    assert [stack.hidden_size for stack in stacks] == list(model.config.hidden_sizes)
    first, shown = stacks[0], []
    with torch.no_grad(), tapped(first, lambda _, stream: shown.append(stream.shape)):
        model(**tiny_inputs(model))
    assert set(shown) == {torch.Size((1, 8, 8, first.hidden_size))}


class Block(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.form = form

    def forward(self, hidden_states=None, mask=None):
        made = hidden_states + self.linear(hidden_states) * (1 if mask is None else mask)
        return {"tuple": (None, made), "mapping": {"weights": None, "hidden_states": made}}.get(self.form, made)


class Model(nn.Module):
    """Blocks of a form, behind other lists of the same length that hand nothing on."""

    def __init__(self, form="tensor", count=3):
        super().__init__()
        torch.manual_seed(0)
        members = [Block(form) for _ in range(count)]
        self.embed = nn.Embedding(50, WIDTH)
        self.stack = nn.Sequential(*members) if form == "sequential" else nn.ModuleList(members)
        self.sides = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.idle = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.form = form

    def forward(self, input_ids):
        stream = self.embed(input_ids)
        if self.form == "flat":
            stream = stream.flatten(0, 1)
        if self.form == "time first":
            stream = stream.transpose(0, 1)
        if self.form == "sequential":
            return self.stack(stream)
        for block, side in zip(self.stack, self.sides, strict=True):
            side(self.embed(input_ids + 1))
            given = {"mask": torch.rand(WIDTH), "hidden_states": stream} if self.form == "keyword" else {}
            made = block(**given) if given else block(stream)
            stream = made if isinstance(made, torch.Tensor) else next(v for v in _values(made) if v is not None)
        return stream


def _values(made):
    return made.values() if isinstance(made, dict) else made


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping", "sequential", "flat", "keyword", "time first"])
def test_every_form_in_which_blocks_hand_on_a_stream(form):
    model = Model(form)
    ids = torch.arange(14).reshape(2, 7)
    (stack,) = find_block_stacks(model, {"input_ids": ids[:1]})
    assert (stack.path, stack.role, stack.hidden_size, stack.tokens) == ("stack", "final", WIDTH, 7)
    assert [path for path, _ in stack.blocks] == ["stack.0", "stack.1", "stack.2"]
    shown = {}
    with torch.no_grad(), tapped(stack, lambda index, stream: shown.__setitem__(index, stream)):
        output = model(ids)
    assert sorted(shown) == [-1, 0, 1, 2]
    assert torch.equal(shown[-1].reshape(2, 7, WIDTH), model.embed(ids))
    assert torch.equal(shown[2], output.transpose(0, 1) if form == "time first" else output)


def test_the_watch_leaves_nothing_behind():
    model = Model()
    find_block_stacks(model, {"input_ids": torch.arange(5)[None]})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(UsageError, match="does not run on"):
        find_block_stacks(model, {"input_ids": torch.full((1, 3), 99)})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Convolutions(nn.Module):
    """Layers of one shape in a row that add nothing to what they are given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv1d(96, 96, 3, padding=1) for _ in range(5))

    def forward(self, values):
        for layer in self.layers:
            values = layer(values)
        return values


def test_convolutions_that_embed_positions_are_no_second_stream():
    model = tiny("data2vec-audio")
    assert [stack.path for stack in find_block_stacks(model, tiny_inputs(model))] == ["encoder.layers"]


def test_a_row_of_plain_convolutions_is_no_residual_stream():
    model = Convolutions()
    with pytest.raises(UsageError, match=r"no list of blocks .* layers \(5\); .*--blocks-path"):
        find_block_stacks(model, {"values": torch.randn(1, 96, 40)})


def test_lists_are_named_where_none_is_a_stream():
    model = tiny("flaubert")
    given = tiny_inputs(model)
    with pytest.raises(UsageError, match=r"attentions \(4\), layer_norm1 \(4\), ffns \(4\), layer_norm2 \(4\)"):
        find_block_stacks(model, given)
    (stack,) = find_block_stacks(model, given, "layer_norm2")
    assert (len(stack.blocks), stack.hidden_size, stack.post_norm) == (4, model.config.emb_dim, True)
    assert stack.norm_output == tuple(f"layer_norm2.{i}" for i in range(4))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("stacks", r"'stacks' is no list of blocks of Model: choose one of stack \(3\), sides \(3\), idle \(3\)"),
        ("", "is no list of blocks"),
        ("idle", r"idle does not run on these inputs: choose another of stack \(3\)"),
    ],
)
def test_a_wrong_path_is_answered_with_the_lists(path, says):
    with pytest.raises(UsageError, match=says):
        find_block_stacks(Model(), {"input_ids": torch.arange(5)[None]}, path)


def test_a_model_without_lists_says_so():
    with pytest.raises(UsageError, match="its lists are none"):
        find_block_stacks(nn.Linear(4, 4), {"input": torch.randn(1, 4)})


def test_a_list_that_was_asked_for_is_taken_alone():
    (stack,) = find_block_stacks(Model(), {"input_ids": torch.arange(5)[None]}, "sides")
    assert (stack.path, stack.role) == ("sides", "final")
    model = tiny("whisper")
    (stack,) = find_block_stacks(model, tiny_inputs(model), "encoder.layers")
    assert (stack.path, len(stack.blocks)) == ("encoder.layers", 4)
