"""Finding norms in checkpoints by the atlas, by endings of names, and by what the user says."""

from pathlib import Path

import numpy as np
import pytest

from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.format import Checkpoint, TensorEntry
from deadreckon.checkpoint.source import open_model
from deadreckon.errors import InputError, UsageError

D = 6


class InMemory(Checkpoint):
    """A checkpoint of given tensors; every vector read is noted."""

    def __init__(self, config: dict, tensors: dict, file_format: str = "safetensors") -> None:
        self.path, self.config, self.bytes_read, self.read = Path("model.file"), config, 0, []
        self.values = {name: np.asarray(value, dtype=np.float64) for name, value in tensors.items()}
        self.tensors = {n: TensorEntry(n, "F32", v.shape, self.path, 0, v.nbytes) for n, v in self.values.items()}
        self.format = file_format

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return False

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        raise NotImplementedError

    def vector(self, name: str):
        self.read.append(name)
        return self.values[name]

    @property
    def architecture(self) -> str | None:
        return self.config.get("general.architecture" if self.format == "gguf" else "model_type")


def gain(seed: int = 0, size: int = D) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 1.5, size)


def norms(*stems: str, shift: bool = True, size: int = D, words: tuple[str, str] = ("weight", "bias")) -> dict:
    """Gain and shift tensors of norms of these names, all different."""
    tensors = {}
    for seed, stem in enumerate(stems):
        tensors[f"{stem}.{words[0]}"] = gain(seed, size)
        if shift:
            tensors[f"{stem}.{words[1]}"] = gain(seed + 100, size) - 1
    return tensors


def llama(*wrappers: str, layers: int = 2) -> dict:
    """Norms and one matrix of a Llama's file, every name behind the wrappers."""
    wrapper = "".join(f"{w}." for w in wrappers)
    stems = [f"{wrapper}layers.{i}.{n}" for i in range(layers) for n in ("input_layernorm", "post_attention_layernorm")]
    return {**norms(*stems, f"{wrapper}norm", shift=False), f"{wrapper}layers.0.mlp.up_proj.weight": np.ones((D, D))}


LLAMA = {"model_type": "llama", "hidden_size": D, "num_hidden_layers": 2, "rms_norm_eps": 1e-6}
BERT = {"model_type": "bert", "hidden_size": D, "num_hidden_layers": 2}
NEOX = {"model_type": "gpt_neox", "hidden_size": D, "layer_norm_eps": 1e-5}


def test_minilm(minilm):
    checkpoint = open_model(minilm)
    (norm,) = find_norms(checkpoint)
    assert (norm.name, norm.kind.name, norm.role) == ("encoder.layer.5.output.LayerNorm", "layernorm", "final")
    assert np.argsort(np.abs(norm.gain))[:3].tolist() == [223, 127, 319]  # its near-zero gains
    assert norm.shift is not None
    every = find_norms(checkpoint, "all")
    assert len(every) == 13
    assert every[0].name == norm.name
    assert every[1].name == "embeddings.LayerNorm"


def test_smollm2(smollm2):
    checkpoint = open_model(smollm2)
    (norm,) = find_norms(checkpoint)
    assert (norm.name, norm.kind.name, norm.gain_offset, norm.hidden_size) == ("output_norm", "rmsnorm", 0.0, 576)
    assert norm.eps == pytest.approx(1e-5)
    names = [n.name for n in find_norms(checkpoint, "all")]
    assert len(names) == 61
    assert names[1:3] == ["blk.0.attn_norm", "blk.0.ffn_norm"]
    assert names[-1] == "blk.29.ffn_norm"


@pytest.mark.parametrize(
    "wrappers", [(), ("model",), ("module", "model"), ("base_model", "model", "model"), ("backbone",)]
)
def test_the_final_norm_behind_any_wrapper(wrappers):
    checkpoint = InMemory(LLAMA, llama(*wrappers))
    (norm,) = find_norms(checkpoint)
    assert norm.name == ".".join([*wrappers, "norm"])
    assert np.array_equal(norm.gain, gain(4))
    assert (norm.kind.name, norm.shift, norm.eps, norm.role) == ("rmsnorm", None, 1e-6, "final")
    assert checkpoint.read == [f"{norm.name}.weight"]  # nothing else is read


def test_old_names_of_gain_and_shift():
    tensors = norms(
        "bert.encoder.layer.0.output.LayerNorm", "bert.encoder.layer.1.output.LayerNorm", words=("gamma", "beta")
    )
    (norm,) = find_norms(InMemory(BERT, tensors))
    assert norm.name == "bert.encoder.layer.1.output.LayerNorm"
    assert np.array_equal(norm.gain, gain(1))
    assert np.array_equal(norm.shift, gain(101) - 1)
    assert find_norms(InMemory(BERT, tensors), "bert.encoder.layer.0.output.LayerNorm.gamma")[0].gain[0] == gain(0)[0]


def test_the_last_block_is_counted_by_the_config_or_else_in_the_file():
    tensors = norms(*(f"encoder.layer.{i}.output.LayerNorm" for i in range(11)))
    (norm,) = find_norms(InMemory({"model_type": "bert"}, tensors))
    assert norm.name == "encoder.layer.10.output.LayerNorm"  # 10 comes after 9
    with pytest.raises(InputError, match=r"encoder\.layer\.11\.output\.LayerNorm\.weight"):
        find_norms(InMemory({**BERT, "num_hidden_layers": 12}, tensors))


def test_the_head_of_a_masked_language_model_comes_second():
    stems = ("bert.encoder.layer.1.output.LayerNorm", "cls.predictions.transform.LayerNorm")
    found = find_norms(InMemory(BERT, norms(*stems)))
    assert [(n.name, n.role) for n in found] == [(stems[0], "final"), (stems[1], "head")]


def test_gain_offsets():
    config = {"model_type": "gemma2", "hidden_size": D}
    stored = gain(4)
    (norm,) = find_norms(InMemory(config, llama("model")))
    assert norm.gain_offset == 1
    assert np.array_equal(norm.gain, stored + 1)
    (plain,) = find_norms(InMemory({**config, "model_type": "gemma4_text"}, llama("model")))
    assert np.array_equal(plain.gain, stored)
    (said,) = find_norms(InMemory(config, llama("model")), gain_offset=0.0)
    assert np.array_equal(said.gain, stored)


def test_encoder_and_decoder():
    tensors = norms("decoder.final_layer_norm", "encoder.final_layer_norm", shift=False)
    found = find_norms(InMemory({"model_type": "t5", "d_model": D}, tensors))
    assert [(n.name, n.role, n.kind.name) for n in found] == [
        ("decoder.final_layer_norm", "decoder", "rmsnorm"),
        ("encoder.final_layer_norm", "encoder", "rmsnorm"),
    ]


def test_an_encoder_alone_under_the_config_of_both():
    tensors = norms("encoder.final_layer_norm", shift=False)
    (norm,) = find_norms(InMemory({"model_type": "t5", "d_model": D}, tensors))
    assert (norm.name, norm.role) == ("encoder.final_layer_norm", "encoder")
    broken = {**tensors, "decoder.block.0.layer.0.layer_norm.weight": gain()}
    with pytest.raises(InputError, match=r"decoder\.final_layer_norm\.weight"):  # negative control: half a decoder
        find_norms(InMemory({"model_type": "t5", "d_model": D}, broken))


def test_a_composite_and_its_towers():
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": D}}
    vision = norms("vision_tower.vision_model.post_layernorm", size=4)
    for stem in ("model.language_model.norm", "language_model.model.norm"):
        found = find_norms(
            InMemory(config, {**norms(stem, shift=False), **{f"model.{k}": v for k, v in vision.items()}})
        )
        assert [(n.name, n.role, n.gain_offset) for n in found] == [
            (stem, "final", 1),
            ("model.vision_tower.vision_model.post_layernorm", "vision", 0),  # wrapped once more than in the atlas
        ]
    blocks = norms("vision_tower.vision_model.encoder.layers.0.layer_norm1", size=4)
    every = find_norms(InMemory(config, {**norms("model.language_model.norm", shift=False), **blocks}), "all")
    assert [n.role for n in every] == ["final", "block"]
    half = {**norms("language_model.norm", shift=False), "vision_tower.embeddings.weight": np.ones((D, D))}
    assert [n.role for n in find_norms(InMemory(config, half))] == ["final"]
    (text_only,) = find_norms(InMemory(config, llama("model")))
    assert (text_only.name, text_only.gain_offset) == ("model.norm", 1)


def test_the_vision_tower_is_found_by_its_ending():
    config = {"model_type": "clip", "vision_config": {"hidden_size": 4}, "text_config": {"hidden_size": D}}
    tensors = {**norms("text_model.final_layer_norm"), **norms("vision_model.post_layernorm", size=4)}
    found = find_norms(InMemory(config, {f"clip.{name}": value for name, value in tensors.items()}))
    assert [(n.name, n.role, n.hidden_size) for n in found] == [
        ("clip.text_model.final_layer_norm", "final", D),
        ("clip.vision_model.post_layernorm", "vision", 4),
    ]


def test_a_class_token_norm_stands_alone_where_the_stream_ends_without():
    (norm,) = find_norms(InMemory({"model_type": "clip_vision_model"}, norms("vision_model.post_layernorm")))
    assert (norm.name, norm.role) == ("vision_model.post_layernorm", "vision")


def test_a_norm_without_parameters_has_unit_gains():
    tensors = {"model.layers.0.mlp.up_proj.weight": np.ones((D, D))}
    (norm,) = find_norms(InMemory({"model_type": "olmo", "hidden_size": D}, tensors))
    assert np.array_equal(norm.gain, np.ones(D))
    assert (norm.kind.name, norm.shift) == ("layernorm", None)
    with pytest.raises(UsageError, match="hidden"):
        find_norms(InMemory({"model_type": "olmo"}, tensors))


def test_a_stream_that_ends_without_a_norm():
    config = {
        "model_type": "opt",
        "hidden_size": D,
        "word_embed_proj_dim": D // 2,
        "do_layer_norm_before": False,
        "num_hidden_layers": 2,
    }
    tensors = norms(*(f"model.decoder.layers.{i}.final_layer_norm" for i in range(2)))
    with pytest.raises(UsageError, match=r"un-normed.*--norm.*decoder\.layers\.1\.final_layer_norm"):
        find_norms(InMemory(config, tensors))
    (chosen,) = find_norms(InMemory(config, tensors), "model.decoder.layers.1.final_layer_norm")
    assert (chosen.kind.name, chosen.role) == ("layernorm", "block")


def test_the_fuller_spelling_is_meant_where_both_are_there():
    (norm,) = find_norms(InMemory(LLAMA, norms("norm", "model.norm", shift=False)))
    assert norm.name == "model.norm"


def test_what_the_user_says_wins():
    checkpoint = InMemory(NEOX, norms("gpt_neox.final_layer_norm"))
    assert find_norms(checkpoint)[0].kind.name == "layernorm"
    assert find_norms(checkpoint, kind="rmsnorm")[0].kind.name == "rmsnorm"


def test_every_norm_in_layer_order():
    tensors = llama("model", layers=11)
    found = find_norms(InMemory(LLAMA, tensors), "all")
    names = [norm.name for norm in found]
    assert len(set(names)) == len(names) == 23
    assert [norm.role for norm in found] == ["final", *["block"] * 22]
    assert names[1] == "model.layers.0.input_layernorm"
    assert names[-1] == "model.layers.10.post_attention_layernorm"
    assert all(norm.eps == 1e-6 for norm in found)


def test_one_norm_by_name():
    checkpoint = InMemory(NEOX, norms("gpt_neox.final_layer_norm", "gpt_neox.layers.0.input_layernorm"))
    for name in (
        "gpt_neox.final_layer_norm",
        "gpt_neox.final_layer_norm.weight",
        "gpt_neox.final_layer_norm.bias",
        "final_layer_norm",
    ):
        (norm,) = find_norms(checkpoint, name)
        assert (norm.name, norm.role, norm.kind.name) == ("gpt_neox.final_layer_norm", "final", "layernorm")
    assert find_norms(checkpoint, "layers.0.input_layernorm")[0].role == "block"


def test_a_norm_of_an_unknown_architecture():
    checkpoint = InMemory(
        {"model_type": "strange"}, {**norms("a.ln_out"), **norms("a.norm_out", shift=False), "b.w": gain()}
    )
    (centred,) = find_norms(checkpoint, "a.ln_out")  # it has a shift
    assert (centred.kind.name, centred.role) == ("layernorm", "final")
    with pytest.raises(UsageError, match="--kind"):
        find_norms(checkpoint, "a.norm_out")
    (said,) = find_norms(checkpoint, "a.norm_out", kind="rmsnorm", gain_offset=1.0)
    assert said.kind.name == "rmsnorm"
    assert np.array_equal(said.gain, gain() + 1)
    (bare,) = find_norms(checkpoint, "b.w", kind="layernorm")  # any vector of the file
    assert (bare.name, bare.shift) == ("b.w", None)
    with pytest.raises(UsageError, match="unknown norm kind"):
        find_norms(checkpoint, "b.w", kind="batchnorm")


@pytest.mark.parametrize("config", [{}, {"model_type": "strange"}])
def test_an_unknown_architecture_lists_what_there_is(config):
    blocks = norms(*(f"h.{i}.ln_1" for i in range(20)))
    with pytest.raises(UsageError) as caught:
        find_norms(InMemory(config, {**blocks, **norms("ln_f", "ln_embed"), "h.0.mlp.bias": gain()}))
    listed = str(caught.value).partition("NAME one of ")[2]
    assert listed.startswith("ln_f, ln_embed, h.19.ln_1, h.18.ln_1")  # outside the blocks first, then the last blocks
    assert listed.endswith("and 10 more")
    assert listed.count(",") == 11
    assert "--kind" in str(caught.value)
    with pytest.raises(UsageError, match="no tensor that looks like"):
        find_norms(InMemory(config, {"x": gain()}))


@pytest.mark.parametrize(
    ("config", "tensors", "error", "names"),
    [
        (
            NEOX,
            norms("gpt_neox.layers.0.input_layernorm"),
            InputError,
            ["model.file", "gpt_neox.final_layer_norm.weight"],
        ),
        (
            NEOX,
            norms("gpt_neox.final_layer_norm", size=D + 1),
            InputError,
            ["7 gains", "size of 6", "final_layer_norm"],
        ),
        (NEOX, norms("gpt_neox.final_layer_norm", shift=False), InputError, ["final_layer_norm", "no bias"]),
        (
            NEOX,
            {**norms("gpt_neox.final_layer_norm"), "gpt_neox.final_layer_norm.weight": [1, 2, np.nan, 4, 5, 6]},
            InputError,
            ["model.file", "gpt_neox.final_layer_norm.weight", "entry 2"],
        ),
        (
            NEOX,
            {**norms("gpt_neox.final_layer_norm"), "gpt_neox.final_layer_norm.bias": np.ones(D - 1)},
            InputError,
            ["final_layer_norm", "6 entries", "5"],
        ),
        (NEOX, norms("a.final_layer_norm", "b.final_layer_norm"), UsageError, ["a.final_layer_norm", "--norm"]),
    ],
    ids=["missing", "other width", "no shift", "nan", "other length", "ambiguous"],
)
def test_bad_files_are_refused_by_name(config, tensors, error, names):
    with pytest.raises(error) as caught:
        find_norms(InMemory(config, tensors))
    assert all(name in str(caught.value) for name in names), str(caught.value)


def test_of_several_endings_the_text_tower_is_meant():
    stems = ("x.language.final_layer_norm", "x.sound.final_layer_norm", "x.sound.layers.0.final_layer_norm")
    (norm,) = find_norms(InMemory(NEOX, norms(*stems)))
    assert norm.name == stems[0]


@pytest.mark.parametrize("name", ["nonsense", "final_layer_nrm"])
def test_a_name_that_is_not_there(name):
    checkpoint = InMemory(NEOX, norms("gpt_neox.final_layer_norm"))
    with pytest.raises(UsageError, match=r"gpt_neox\.final_layer_norm"):
        find_norms(checkpoint, name)


def test_a_name_that_several_norms_end_in():
    with pytest.raises(UsageError, match="names 2 norms"):
        find_norms(InMemory(LLAMA, llama("model")), "input_layernorm")


def gguf(architecture: str, tensors: dict, **metadata: object) -> InMemory:
    config = {
        "general.architecture": architecture,
        **{f"{architecture}.{k.replace('__', '.')}": v for k, v in metadata.items()},
    }
    return InMemory(config, tensors, "gguf")


LN, RMS = "attention__layer_norm_epsilon", "attention__layer_norm_rms_epsilon"


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        (gguf("llama", norms("output_norm", shift=False), **{RMS: 1e-5}), [("output_norm", "rmsnorm", "final")]),
        (gguf("gemma3", norms("output_norm", shift=False), **{RMS: 1e-6}), [("output_norm", "rmsnorm", "final")]),
        (gguf("gptneox", norms("output_norm"), **{LN: 1e-5}), [("output_norm", "layernorm", "final")]),
        (gguf("command-r", norms("output_norm", shift=False), **{LN: 1e-5}), [("output_norm", "layernorm", "final")]),
        (
            gguf(
                "bert",
                norms("token_embd_norm", *(f"blk.{i}.layer_output_norm" for i in range(11))),
                block_count=11,
                **{LN: 1e-12},
            ),
            [("blk.10.layer_output_norm", "layernorm", "final")],
        ),
        (
            gguf("bert", norms(*(f"blk.{i}.layer_output_norm" for i in range(3))), block_count=4, **{LN: 1e-12}),
            [("blk.2.layer_output_norm", "layernorm", "final")],
        ),
        (
            gguf("t5", norms("dec.output_norm", "enc.output_norm", shift=False), **{LN: 1e-6, RMS: 1e-6}),
            [("dec.output_norm", "rmsnorm", "decoder"), ("enc.output_norm", "rmsnorm", "encoder")],
        ),
        (
            gguf("t5encoder", norms("enc.output_norm", shift=False), **{LN: 1e-6, RMS: 1e-6}),
            [("enc.output_norm", "rmsnorm", "encoder")],
        ),
        (gguf("novel", norms("output_norm")), [("output_norm", "layernorm", "final")]),  # by its shift
        (
            gguf("olmo", {"blk.0.ffn_up.weight": np.ones((D, D))}, embedding_length=D, **{LN: 1e-5}),
            [("norm", "layernorm", "final")],
        ),
    ],
    ids=lambda value: value.architecture if isinstance(value, InMemory) else "",
)
def test_gguf(checkpoint, expected):
    found = find_norms(checkpoint)
    assert [(n.name if n.shift is not None or n.gain.std() else "norm", n.kind.name, n.role) for n in found] == expected
    assert all(norm.gain_offset == 0 for norm in found)  # the converter has added it


def test_gguf_eps_and_blocks():
    checkpoint = gguf("llama", norms("output_norm", "blk.10.ffn_norm", "blk.2.attn_norm", shift=False), **{RMS: 1e-5})
    assert [n.name for n in find_norms(checkpoint, "all")] == ["output_norm", "blk.2.attn_norm", "blk.10.ffn_norm"]
    assert {n.eps for n in find_norms(checkpoint, "all")} == {1e-5}
    assert find_norms(checkpoint, "blk.2.attn_norm")[0].role == "block"


@pytest.mark.parametrize(
    ("checkpoint", "error", "match"),
    [
        (gguf("llama", norms("blk.0.attn_norm", shift=False), **{RMS: 1e-5}), InputError, r"output_norm\.weight"),
        (gguf("novel", norms("output_norm", shift=False)), UsageError, "--kind"),
        (
            gguf("llama", norms("output_norm", shift=False), embedding_length=D + 1, **{RMS: 1e-5}),
            InputError,
            "size of 7",
        ),
    ],
    ids=["missing", "no kind", "other width"],
)
def test_bad_gguf(checkpoint, error, match):
    with pytest.raises(error, match=match):
        find_norms(checkpoint)
