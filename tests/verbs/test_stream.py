"""``read --stream``: coordinates that are certified dead, and those that are not."""

import json

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import deadreckon
from deadreckon.errors import UsageError
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.probe import probe_norm
from deadreckon.forward.stream_bound import stream_of_module
from deadreckon.forward.tiny import tiny_model
from deadreckon.kernel.stream_bound import NoBound, StreamParts
from deadreckon.results.reading import Reading
from deadreckon.results.schema import json_schema
from deadreckon.verbs.stream import reading_of_stream

PLANTED = 17


def planted(name, *, embedding=True, spare=None):
    """A tiny model in which no write, and no token, reaches one coordinate; `spare` leaves one norm's gain as it is."""
    model = tiny_model(name, head=True)
    redraw_affine(model, "lognormal:0.5", 0)
    norms = stream_of_module(model).norms
    with torch.no_grad():
        for pattern in norms:
            for block in range(4):
                module = model.get_submodule(pattern.replace("*", str(block)))
                if (block, pattern.rpartition(".")[2]) != spare:
                    module.weight[PLANTED] = -(probe_norm(module).gain_offset or 0.0)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("layer_scalar"):
                buffer.fill_(0.8)
        if embedding:
            model.get_input_embeddings().weight[:, PLANTED] = 0.0
    return model


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gemma4_text", "glm4"])
@pytest.mark.parametrize(("dtype", "shard"), [(torch.float32, "1GB"), (torch.bfloat16, "40KB")])
def test_a_planted_dead_coordinate_is_certified_and_nothing_else_is(name, dtype, shard, tmp_path):
    model = planted(name).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    reading = deadreckon.read(tmp_path, stream=True)
    found = reading.stream
    assert (found.applies, found.covers, found.embedding_term, found.why) == (True, "stream", True, None)
    assert (found.dead_coordinates, found.unwritten_coordinates, found.blocks) == (1, 1, 4)
    assert (found.smallest[0].index, found.smallest[0].bound) == (PLANTED, 0.0)
    assert found.smallest[1].bound > 0.01 * found.bound_median
    bound = reading.vectors["stream_bound"]
    assert bound.shape == (5, 64)
    assert (bound[:, PLANTED] == 0).all()
    assert (found.bound_min, found.bound_max) == (bound[-1].min(), bound[-1].max())
    assert found.bound_median == np.median(bound[-1])
    assert 0 < found.bytes_read < reading.bytes_read
    assert found.block_scalars == ([] if name != "gemma4_text" else [float(torch.tensor(0.8, dtype=dtype))] * 4)
    assert found.scalar_product == pytest.approx(np.prod(found.block_scalars))
    with torch.no_grad():
        hidden = model(torch.arange(100)[None], output_hidden_states=True).hidden_states
    assert all((h[..., PLANTED] == 0).all() for h in hidden)


@pytest.mark.parametrize(
    ("plant", "unwritten"),
    [({"embedding": False}, 1), ({"spare": (3, "post_feedforward_layernorm")}, 0)],
)
def test_a_coordinate_that_one_way_in_is_left_is_not_certified(plant, unwritten, tmp_path):
    planted("gemma3_text", **plant).save_pretrained(tmp_path)
    found = deadreckon.read(tmp_path, stream=True).stream
    assert (found.dead_coordinates, found.unwritten_coordinates) == (0, unwritten)


def test_module_and_file_give_one_reading(tmp_path):
    model = planted("gemma4_text")
    model.save_pretrained(tmp_path)
    of_module, of_file = (deadreckon.read(m, stream=True) for m in (model, tmp_path))
    assert {**vars(of_module.stream), "norms": 0, "bytes_read": 0} == {
        **vars(of_file.stream),
        "norms": 0,
        "bytes_read": 0,
    }
    np.testing.assert_array_equal(of_module.vectors["stream_bound"], of_file.vectors["stream_bound"])


def test_not_asked_for_is_null_and_reads_nothing_more(tmp_path):
    planted("gemma2").save_pretrained(tmp_path)
    without, asked = deadreckon.read(tmp_path), deadreckon.read(tmp_path, stream=True)
    assert without.stream is None
    assert "stream_bound" not in without.vectors
    assert asked.bytes_read == without.bytes_read + asked.stream.bytes_read


def test_composites_are_bounded_for_token_ids_alone(tmp_path):
    tiny_model("gemma3", head=True).save_pretrained(tmp_path)
    assert deadreckon.read(tmp_path, stream=True).stream.inputs == "token ids alone"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_where_it_does_not_apply_the_reading_says_why(name, tmp_path, called):
    tiny_model(name).save_pretrained(tmp_path)
    code, out, _ = called("read", tmp_path, "--stream", "--json")
    found = json.loads(out)["stream"]
    assert (code, found["applies"], found["dead_coordinates"]) == (0, False, None)
    assert name in found["why"]
    code, out, _ = called("read", tmp_path, "--stream")
    assert "no bound from parameters" in out


def test_the_command_prints_saves_and_keeps_its_schema(tmp_path, called):
    planted("gemma4_text").save_pretrained(tmp_path / "m")
    code, out, _ = called("read", tmp_path / "m", "--stream", "--json", "--save", tmp_path / "v.safetensors")
    assert code == 0
    record = json.loads(out)
    jsonschema.validate(record, json_schema(Reading))
    assert Reading.from_dict(record).to_dict() == record
    assert load_file(tmp_path / "v.safetensors")["stream_bound"].shape == (5, 64)
    code, out, _ = called("read", tmp_path / "m", "--stream")
    assert code == 0
    assert f"least {PLANTED} (0)" in out
    assert "block scalars from 0.8 to 0.8, their product 0.4096" in out
    code, out, _ = called("read", tmp_path / "m")
    assert "residual stream" not in out


def test_what_has_no_stream_is_refused(called):
    with pytest.raises(UsageError, match="no residual stream"):
        deadreckon.read(np.ones(3), kind="rmsnorm", stream=True)
    code, _, err = called("read", "random:pythia-160m", "--stream")
    assert (code, err.count("\n")) == (2, 1)
    assert "no tensors" in err


def test_a_bound_beyond_floats_is_no_bound():
    parts = StreamParts("x", np.full((3, 2), 1e200), np.full(3, 1e100), np.ones(2), 1.0, ("a",))
    kept, found = reading_of_stream(parts, 1e-6)
    assert (kept, found.applies) == (None, False)
    assert "too large" in found.why
    assert reading_of_stream(NoBound("because"), 1e-6)[1].why == "because"


def test_without_an_embedding_nothing_is_certified_dead():
    parts = StreamParts("x", np.array([[0.0, 1, 1]]), None, None, 1.0, ("a",), "quantised")
    found = reading_of_stream(parts, 1e-6)[1]
    assert (found.covers, found.dead_coordinates, found.unwritten_coordinates) == ("writes", None, 1)
    assert found.why == "quantised"
