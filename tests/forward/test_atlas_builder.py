"""The committed atlas must be what probing the installed transformers gives, and a wrong row must be reported."""

import copy
import json

import numpy as np
import pytest
import torch

from deadreckon.checkpoint.atlas import ABSENT, ATLAS_PATH
from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.source import open_model
from deadreckon.cli.main import main
from deadreckon.errors import UsageError
from deadreckon.forward import atlas_builder
from deadreckon.forward.atlas_builder import COMMAND, GGUF, build_atlas, build_row, drift, write_atlas
from deadreckon.forward.atlas_coverage import CLASSIFIED, atlas_coverage
from deadreckon.forward.probe import probe_norms
from deadreckon.forward.stacks import find_stacks
from deadreckon.forward.tiny import tiny_config, tiny_model
from deadreckon.forward.tiny_classes import base_class
from deadreckon.forward.tiny_facts import CLASSES
from deadreckon.forward.tiny_inputs import tiny_inputs
from deadreckon.forward.tiny_sizes import WIDTH
from deadreckon.forward.watching import redraw, watch

pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLE = ("bert", "clip_vision_model", "gemma3_text", "gpt2", "nemotron", "olmo2", "opt", "t5")


@pytest.fixture(scope="module")
def committed():
    return atlas_builder.committed()


@pytest.fixture(scope="module")
def rebuilt():
    return {name: build_row(name) for name in SAMPLE}


def test_committed_rows_are_what_probing_gives(committed, rebuilt):
    assert drift(committed["rows"], rebuilt) == []


@pytest.mark.slow
def test_all_committed_rows_are_what_probing_gives(committed):
    import transformers

    if transformers.__version__ != committed["transformers"]:
        pytest.skip(f"the atlas was made with transformers {committed['transformers']}")
    assert drift(committed["rows"], build_atlas(committed["rows"])["rows"]) == []


def test_the_header_names_what_made_it(committed):
    assert committed["command"] == COMMAND
    assert committed["gguf"] == GGUF


def _edits():
    def offset(rows):
        del rows["gemma3_text"]["stacks"][0]["norm"]["offset"]

    def kind(rows):
        rows["t5"]["stacks"][0]["norm"]["kind"] = "layernorm"

    def place(rows):
        rows["bert"]["stacks"][0]["norm"]["names"][0] = "encoder.layer.{last}.attention.output.LayerNorm"

    def switch(rows):
        rows["opt"]["switches"].pop()

    def missing(rows):
        del rows["gpt2"]

    return [offset, kind, place, switch, missing]


@pytest.mark.parametrize("edit", _edits(), ids=lambda edit: edit.__name__)
def test_an_edited_row_is_reported(committed, rebuilt, edit):
    rows = copy.deepcopy(committed["rows"])
    edit(rows)
    assert drift(rows, rebuilt)


def test_the_written_file_reads_back_and_holds_a_row_a_line(tmp_path, committed):
    path = tmp_path / "atlas.json"
    write_atlas(committed, path)
    for name in (ATLAS_PATH.name, ABSENT):
        assert (tmp_path / name).read_text() == ATLAS_PATH.with_name(name).read_text(encoding="utf-8")
    read_back = json.loads(path.read_text()) | {"absent": json.loads((tmp_path / ABSENT).read_text())}
    assert read_back == committed
    assert sum(line.startswith(' "') for line in path.read_text().splitlines()) == len(committed["rows"])


def test_a_check_of_one_row_from_the_command_line(capsys):
    assert main(["atlas", "check", "gptj"]) == 0
    assert "1 rows agree" in capsys.readouterr().out


def test_a_check_that_finds_drift_says_so(monkeypatch, capsys, committed):
    other = copy.deepcopy(committed)
    other["rows"]["gptj"]["stacks"][0]["norm"]["kind"] = "rmsnorm"
    monkeypatch.setattr(atlas_builder, "committed", lambda: other)
    assert main(["atlas", "check", "gptj"]) == 1
    assert "gptj: stacks: committed" in capsys.readouterr().out


def test_building_replaces_the_named_rows_and_leaves_the_others(monkeypatch, tmp_path, committed):
    path = tmp_path / "atlas.json"
    stale = {
        **committed,
        "rows": {"gptj": {"stacks": []}, "gpt2": committed["rows"]["gpt2"]},
        "absent": {"gptj": "old"},
    }
    write_atlas(stale, path)
    monkeypatch.setattr(atlas_builder, "ATLAS_PATH", path)
    monkeypatch.setattr(atlas_builder.write_atlas, "__defaults__", (path,))
    assert main(["atlas", "build", "gptj", "no_such_model_type"]) == 0
    written = json.loads(path.read_text())
    assert written["rows"] == {name: committed["rows"][name] for name in ("gpt2", "gptj")}
    assert json.loads((tmp_path / ABSENT).read_text()).keys() == {"no_such_model_type"}


def test_a_model_type_that_cannot_be_built_is_absent_with_the_reason():
    atlas = build_atlas(["no_such_model_type"])
    assert atlas["rows"] == {}
    assert "no_such_model_type" in atlas["absent"]["no_such_model_type"]


def test_coverage_accounts_for_every_model_type_with_a_reason_for_each_that_has_no_row(committed):
    import transformers

    report = atlas_coverage()
    types = report["types"]
    assert set(types) == set(atlas_builder.all_model_types())
    assert sum(report["counts"].values()) == len(types)
    assert all(says["class"] in CLASSIFIED[:2] or says["why"] for says in types.values())
    classified = sum(says["class"] in CLASSIFIED for says in types.values())
    assert report["coverage"] == classified / report["normed"]
    assert types["llama"]["class"] == CLASSIFIED[0]
    assert types["resnet"]["class"] == "no normed residual stream"
    if transformers.__version__ == committed["transformers"]:
        assert not committed["rows"].keys() & committed["absent"].keys()
        assert report["coverage"] >= 0.95


def test_unknown_model_types_are_refused():
    with pytest.raises(UsageError, match="no model type 'nonsense'"):
        tiny_config("nonsense")


@pytest.mark.parametrize("model_type", ["llama", "whisper", "qwen3_next"])
def test_tiny_models_are_tiny_the_same_each_time_and_leave_the_generator_alone(model_type):
    state = torch.get_rng_state()
    first, second = tiny_model(model_type), tiny_model(model_type)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for p in first.parameters()) < 5_000_000
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    inputs = tiny_inputs(first)
    with torch.no_grad():
        assert torch.equal(first(**inputs).last_hidden_state, second(**inputs).last_hidden_state)


def test_a_dotted_override_reaches_a_sub_config():
    config = tiny_config("gemma3", **{"text_config.num_hidden_layers": 2, "vision_config.hidden_size": 32})
    assert (config.text_config.num_hidden_layers, config.vision_config.hidden_size) == (2, 32)


@pytest.mark.parametrize(
    ("model_type", "norm", "blocks", "placement"),
    [
        ("gpt_neox", "final_layer_norm", "layers", "pre"),
        ("roberta", "encoder.layer.3.output.LayerNorm", "encoder.layer", "post"),
        ("olmo2", "norm", "layers", "branch"),
        ("gemma2", "norm", "layers", "sandwich"),
        ("bart", "decoder.layers.3.final_layer_norm", "decoder.layers", "post"),
    ],
)
def test_stacks_by_what_the_modules_do(model_type, norm, blocks, placement):
    main_stack = find_stacks(tiny_model(model_type))[0]
    assert (main_stack.norm, main_stack.blocks, main_stack.placement) == (norm, blocks, placement)


def test_the_final_norm_is_bit_equal_to_the_hidden_state_and_no_other_norm_is():
    model = tiny_model("llama")
    probes = probe_norms(model)
    redraw(model, probes)
    output, calls = watch(model, tiny_inputs(model))
    equal = {call.path for call in calls if call.path in probes and torch.equal(call.made, output.last_hidden_state)}
    assert equal == {"norm"}
    assert not any(module._forward_hooks for module in model.modules())


def test_a_stream_that_ends_in_a_linear_map_has_no_final_norm():
    stack = find_stacks(tiny_model("opt", do_layer_norm_before=False, word_embed_proj_dim=32))[0]
    assert stack.norm is None
    assert stack.why is not None
    assert "project_out" in stack.why


@pytest.mark.parametrize(
    ("model_type", "norm", "blocks", "placement", "says"),
    [
        ("sam_vision_model", None, "vision_encoder.layers", "pre", "neck.conv1 (Conv2d) takes the last block's output"),
        ("sam3_vit_model", None, "layers", "pre", "the last block's output is the last hidden state"),
        ("lasr_ctc", "encoder.out_norm", "encoder.layers", "post", ""),
        ("clap_audio_model", "audio_encoder.norm", "audio_encoder.layers", None, "rearranged"),
    ],
    ids=["a neck", "another layout", "logits alone", "a rearranged norm"],
)
def test_streams_that_do_not_plainly_end_in_a_norm(model_type, norm, blocks, placement, says):
    stack = find_stacks(tiny_model(model_type))[0]
    assert (stack.norm, stack.blocks, stack.placement) == (norm, blocks, placement)
    assert says in f"{stack.why} {stack.note}"


def test_a_norm_that_probing_does_not_recognise_is_not_taken_for_none():
    """SqueezeBERT's norms swap channels and tokens; saying that its stream ends without a norm would be wrong."""
    atlas = build_atlas(["squeezebert"])
    assert atlas["rows"] == {}
    assert "SqueezeBertLayerNorm" in atlas["absent"]["squeezebert"]


def test_parts_take_what_the_whole_asks_of_them():
    config = tiny_config("rt_detr")
    assert list(config.backbone_config.out_indices) == [2, 3, 4]  # the backbone's own default is its last level alone
    assert config.backbone_config.hidden_sizes[-1] == WIDTH


def test_listed_classes_exist():
    assert all(base_class(model_type).__name__ == path.rpartition(".")[2] for model_type, path in CLASSES.items())


def test_a_switch_that_changes_the_kind_changes_the_stacks():
    """Negative control of the comparison that decides whether a setting is recorded."""
    plain, other = (find_stacks(tiny_model("wav2vec2", do_stable_layer_norm=flag))[0] for flag in (False, True))
    assert (plain.norm, plain.placement) == ("encoder.layers.3.final_layer_norm", "post")
    assert (other.norm, other.placement) == ("encoder.layer_norm", "pre")


@pytest.mark.parametrize("original", [True, False], ids=["hub names", "own names"])
@pytest.mark.parametrize("head", [False, True], ids=["base", "head"])
@pytest.mark.parametrize("model_type", ["bert", "gemma3", "nemotron", "qwen3_next", "vit", "whisper"])
def test_saved_models_are_read_as_their_modules_compute(tmp_path, model_type, head, original):
    model = tiny_model(model_type, head)
    redraw(model, probe_norms(model))
    model.save_pretrained(tmp_path, save_original_format=original)
    found = find_norms(open_model(tmp_path), "all")
    probes = list(probe_norms(model).values())
    assert len(found) == len(probes)
    for norm in found:
        (twin,) = [p for p in probes if p.gain.shape == norm.gain.shape and np.array_equal(p.gain, norm.gain)]
        assert (norm.kind, norm.gain_offset, norm.eps) == (twin.kind, twin.gain_offset, twin.eps)
        assert (norm.shift is None) == (twin.shift is None)
        assert norm.shift is None or np.array_equal(norm.shift, twin.shift)
