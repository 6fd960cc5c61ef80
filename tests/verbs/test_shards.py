"""A measurement in shards, through the files that the command writes: the whole, or one clear error."""

import contextlib
import io
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from deadreckon.cli import main as cli
from deadreckon.errors import InputError, UsageError
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_sizes import LAYERS, WIDTH
from deadreckon.results.measurement import Measurement, Shard
from deadreckon.results.schema import json_schema
from deadreckon.verbs.measure import measure
from deadreckon.verbs.shards import measure_shard, merge_shards

U = torch.finfo(torch.float64).eps / 2
TOKENS = 1100  # ends in the middle of the third of the rows of 510
SHARDS = 4  # so the last one is empty


def stored(folder, seed=0):
    model = tiny_model("gpt_neox", max_position_embeddings=512)
    redraw_affine(model, "lognormal:0.5", seed)
    model.double().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A float64 model: what is left of a difference is that of adding up."""
    return stored(tmp_path_factory.mktemp("model") / "model")


def shard(folder, model, which, **options):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    file = folder / f"{which.replace('/', '-of-')}.safetensors"
    arguments = ["measure", model, "--tokens", TOKENS, "--shard", which, "--save", file, "--quiet", *words]
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main([str(a) for a in arguments]) == 0
    return file


@pytest.fixture(scope="module")
def shards(model, tmp_path_factory):
    """The files of a measurement with a twin, in an order of no meaning."""
    folder = tmp_path_factory.mktemp("shards")
    files = [shard(folder, model, f"{i}/{SHARDS}", twin=1, affine="lognormal:0.5") for i in range(1, SHARDS + 1)]
    return [files[i] for i in (3, 1, 0, 2)]


@pytest.fixture(scope="module")
def whole(model):
    return measure(model, tokens=TOKENS, twin=1, affine="lognormal:0.5")


def assert_same(found, expected):
    """Figures equal to rounding.

    Eigenvalues differ by d times what an entry of a covariance does: (N + m) u of the largest, m for the forward. An
    effective rank hears of the root of that, the singular value of a direction that is dead.
    """
    scale = WIDTH * (expected.tokens + 16 * LAYERS * WIDTH) * U * expected.lambda_max
    for name in ("tokens", "distinct_inputs", "norm", "kind", "kernel_dim", "predicted_dead", "dead_counts", "tau"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("lambda_2", "lambda_mean", "lambda_max"):
        assert abs(getattr(found, name) - getattr(expected, name)) <= scale, name
    relative = scale / expected.lambda_max
    assert found.effective_rank == pytest.approx(expected.effective_rank, rel=relative**0.5)
    for name in ("participation_ratio", "stable_rank"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=4 * WIDTH * relative)
    assert found.lambda_dead_float64 <= WIDTH * (16 * LAYERS * U) ** 2 * expected.lambda_max
    assert found.protocol.status == expected.protocol.status == "ok"


def test_shards_merge_to_the_whole(called, shards, whole, tmp_path):
    out, save = tmp_path / "merged.json", tmp_path / "vectors.safetensors"
    code, printed, err = called("measure", "--merge", *shards, "--json", "-o", out, "--save", save)
    assert (code, err) == (0, "")
    assert printed == out.read_text()
    merged = Measurement.from_dict(json.loads(printed))
    assert_same(merged, whole)
    (twin,) = merged.twins
    assert twin.seed == whole.twins[0].seed == 1
    assert_same(twin, whole.twins[0])
    assert merged.gap.effective_rank.change == pytest.approx(
        whole.gap.effective_rank.change, abs=1e-4
    )  # two effective ranks
    for name in ("model", "described_by", "files", "data", "seed", "affine", "solver"):
        assert getattr(merged, name) == getattr(whole, name)
    # Eigenvectors turn by at most the difference over the gap; the tested direction comes from the gain alone.
    assert np.array_equal(load_file(save)["tested"], whole.vectors["tested"])


def test_shards_hold_their_share_and_one_of_them_nothing(shards):
    records = [_record(file) for file in shards]
    # Rows of 510 tokens: whole, whole and 80.
    assert {r.shard: r.tokens for r in records} == {"1/4": 510, "2/4": 510, "3/4": TOKENS - 1020, "4/4": 0}
    assert {r.wanted_tokens for r in records} == {TOKENS}
    assert [r.twins for r in records] == [[1]] * SHARDS


def test_any_order_any_solver_and_tau(shards, whole):
    figures = [merge_shards(files) for files in (shards, shards[::-1], sorted(shards))]
    for found in figures:
        assert_same(found, whole)
    bottom = merge_shards(shards, solver="bottom", tau=1e-3)
    assert (bottom.solver, bottom.tau) == ("bottom", 1e-3)
    assert bottom.alignment == pytest.approx(figures[0].alignment, abs=1e-9)
    with pytest.raises(UsageError, match="svd"):
        merge_shards(shards, solver="svd")


def test_one_shard_of_one_is_the_whole(model, tmp_path):
    assert_same(merge_shards([shard(tmp_path, model, "1/1")]), measure(model, tokens=TOKENS))


def test_shards_in_bfloat16_one_of_them_empty(model, tmp_path):
    files = [shard(tmp_path, model, f"{i}/4", dtype="bfloat16") for i in (4, 1, 2, 3)]
    merged, one = merge_shards(files), measure(model, tokens=TOKENS, dtype="bfloat16")
    assert merged.protocol.norm_tolerance == one.protocol.norm_tolerance
    assert merged.protocol.status == one.protocol.status == "ok"
    assert merged.distinct_inputs == one.distinct_inputs


def test_images_in_shards(tmp_path):
    folder = tmp_path / "vit"
    tiny_model("vit").save_pretrained(folder)
    files = [shard(tmp_path, folder, f"{i}/2") for i in (1, 2)]
    merged = merge_shards(files)
    assert merged.tokens == TOKENS
    assert merged.distinct_inputs is None
    # float32 in batches of other sizes.
    assert merged.lambda_max == pytest.approx(measure(folder, tokens=TOKENS).lambda_max, rel=1e-5)


def test_the_same_in_python(model, tmp_path, whole):
    """A loaded module and the caller's own batches; the record's vectors are what a file of them needs."""
    module = tiny_model("gpt_neox").double()
    batches = [{"input_ids": torch.randint(5, 120, (30, 10), generator=torch.Generator().manual_seed(0))}]
    files = []
    for i in (1, 2, 3):
        part = measure_shard(module, f"{i}/3", batches=batches)
        assert isinstance(part, Shard)
        files.append(tmp_path / f"{i}.safetensors")
        save_file(dict(part.vectors), files[-1], {"record": part.to_json()})
    assert_same(merge_shards(files), measure(module, batches=batches))


def test_a_shard_that_ran_nothing_has_no_say_in_the_dtype(tmp_path):
    """With masks it is known beforehand that nothing is left for the fourth: its model never runs."""
    module = tiny_model("gpt_neox")
    ids = torch.randint(5, 120, (3, 40), generator=torch.Generator().manual_seed(0))
    batches, files = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], []
    for i in (4, 1, 2, 3):
        part = measure_shard(module, f"{i}/4", batches=batches, tokens=200)
        files.append(tmp_path / f"{i}.safetensors")
        save_file(dict(part.vectors), files[-1], {"record": part.to_json()})
    merged = merge_shards(files)
    assert (merged.tokens, merged.distinct_inputs) == (120, ids.unique().numel())
    assert any("only 120 of the 200 tokens" in warning for warning in merged.warnings)
    assert merged.schur_ratio is not None  # float32, not the float64 of statistics that saw nothing


def _record(file):
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        return Shard.from_dict(json.loads(opened.metadata()["record"]))


def test_record_round_trips_and_matches_its_schema(called, model, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    file = tmp_path / "one.safetensors"
    code, out, err = called("measure", model, "--tokens", 600, "--shard", "2/3", "--save", file, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    jsonschema.validate(data, json_schema(Shard))
    assert data["schema"] == "deadreckon.shard/1"
    assert _record(file) == Shard.from_dict(data)
    assert (data["shard"], data["tokens"], data["distinct_inputs"]) == ("2/3", 90, len(load_file(file)["model.ids"]))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "tokens": "many"}, json_schema(Shard))


def test_a_person_is_told_what_is_next(called, model, tmp_path):
    code, out, _ = called("measure", model, "--tokens", 600, "--shard", "1/2", "--save", tmp_path / "x")
    assert code == 0
    assert "--merge" in out
    assert "1/2" in out


# What does not fit together


def fails(called, says, code, *arguments, folder=None):
    """The command ends with that code and one clear line, and has written nothing."""
    before = None if folder is None else sorted(folder.iterdir())
    found, out, err = called("measure", *arguments)
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    assert all(word in err for word in ([says] if isinstance(says, str) else says)), err
    if folder is not None:
        assert sorted(folder.iterdir()) == before
    return err


def test_missing_and_doubled_shards(called, shards, tmp_path):
    fails(called, "shard 2/4 is missing", 2, "--merge", *[s for s in shards if "2-of" not in s.name])
    fails(called, "1/4, 4/4 is missing", 2, "--merge", *[s for s in shards if s.name[0] in "23"])
    same = shards[1].parent / ".." / shards[1].parent.name / shards[1].name
    fails(called, ["given already", "2-of-4"], 2, "--merge", *shards, same)
    fails(called, "given already", 2, "--merge", *shards, shards[0])
    out = tmp_path / "out.json"
    fails(called, "missing", 2, "--merge", shards[0], "-o", out, "--save", tmp_path / "v", folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 7}, "seed"),
        ({"tokens": 1050}, "wanted_tokens"),
        ({"norm": "layers.1.input_layernorm"}, "norm"),
        ({"dtype": "float32"}, "dtype"),
        ({"twin": 2}, "twins"),
    ],
)
def test_shards_of_other_measurements(called, model, tmp_path, options, says):
    one = shard(tmp_path, model, "1/2")
    other = shard(tmp_path, model, "2/2", **options)
    fails(called, [str(other), "not of the same measurement", says], 2, "--merge", one, other)


def test_shards_of_other_models_and_counts(called, model, shards, tmp_path):
    another = stored(tmp_path / "model", seed=1)  # of the same name, with other gains
    files = [shard(tmp_path, model, "1/2"), shard(tmp_path, another, "2/2")]
    fails(called, "not of the same measurement", 2, "--merge", *files)
    plain = [shard(tmp_path, model, "2/3"), files[0]]
    fails(called, ["shard 1/2", "2/3"], 2, "--merge", *plain)


def test_loaded_modules_with_other_gains_are_told_apart(tmp_path):
    batches, files = [{"input_ids": torch.arange(10, 110).reshape(10, 10)}], []
    for i, seed in ((1, 0), (2, 1)):
        module = tiny_model("gpt_neox")
        redraw_affine(module, "lognormal:0.5", seed)
        part = measure_shard(module, f"{i}/2", batches=batches)
        files.append(tmp_path / f"{i}.safetensors")
        save_file(dict(part.vectors), files[-1], {"record": part.to_json()})
    with pytest.raises(InputError, match="other parameters"):
        merge_shards(files)


# What is not a shard


def edited(file, folder, change=lambda record: record, tensors=lambda state: state):
    """A copy of a shard with another record or other tensors."""
    record, state = _record(file).to_dict(), load_file(file)
    target = folder / f"edited-{file.name}"
    save_file(tensors(state), target, {"record": json.dumps(change(record))})
    return target


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "short by a byte": lambda data: data[:-1],
    "header length": lambda data: struct.pack("<Q", 1 << 60) + data[8:],
    "header": lambda data: data[:20] + b"\xff" * 10 + data[30:],
    "text": lambda data: b"these are no tensors\n" * 100,
    "record": lambda data: data.replace(b'\\"schema\\"', b'\\"schemer', 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(called, shards, tmp_path, damage):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(DAMAGE[damage](shards[0].read_bytes()))
    rest = shards[1:]
    fails(called, str(bad), 2, "--merge", bad, *rest, "-o", tmp_path / "out", folder=tmp_path)
    fails(called, str(bad), 2, "--merge", *rest, bad, "-o", tmp_path / "out", folder=tmp_path)


CHANGES = {
    "shard 9/4": lambda r: {**r, "shard": "9/4"},
    "a kind that is none": lambda r: {**r, "kind": "batchnorm"},
    "a dtype that is none": lambda r: {**r, "dtype": "save"},
    "a float that is none": lambda r: {**r, "dtype": "int64"},
    "groups": lambda r: {**r, "groups": 7},
    "no tokens field": lambda r: {k: v for k, v in r.items() if k != "tokens"},
    "tokens are words": lambda r: {**r, "tokens": "many"},
    "twins that are not there": lambda r: {**r, "twins": [1, 2]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_edited_records(called, shards, tmp_path, change):
    files = [edited(file, tmp_path, change=CHANGES[change]) for file in shards]
    fails(called, str(files[0]), 2, "--merge", *files)


TENSORS = {
    "gone": lambda s: {k: v for k, v in s.items() if k != "model.native.mean"},
    "gone from the twin": lambda s: {k: v for k, v in s.items() if k != "twin.1.native.scatter"},
    "another shape": lambda s: {**s, "model.native.scatter": s["model.native.scatter"][:5, :5].copy()},
    "another size": lambda s: {**s, "model.error.squares": s["model.error.squares"][:5].copy()},
    "one number less": lambda s: {**s, "model.signal": np.zeros(2)},
    "gains": lambda s: {**s, "model.gain": s["model.gain"][:-1].copy()},
    "NaN": lambda s: {**s, "model.native.mean": s["model.native.mean"] * np.nan},
    "infinity": lambda s: {**s, "twin.1.exact.scatter": s["twin.1.exact.scatter"] + np.inf},
    "another count": lambda s: {**s, "model.native.count": np.array(s["model.native.count"] + 1)},
    "another dtype": lambda s: {**s, "model.native.scatter": s["model.native.scatter"].astype(np.float16)},
}


@pytest.mark.parametrize("change", TENSORS)
def test_edited_tensors(called, shards, tmp_path, change):
    bad = edited(shards[1], tmp_path, tensors=TENSORS[change])
    fails(called, str(bad), 2, "--merge", *shards[:1], bad, *shards[2:])
    fails(called, str(bad), 2, "--merge", bad, *shards[:1], *shards[2:])


def test_an_edited_copy_is_the_control(shards, whole, tmp_path):
    assert_same(merge_shards([edited(file, tmp_path) for file in shards]), whole)


def test_files_that_are_not_shards(called, model, shards, tmp_path):
    saved = tmp_path / "measured.safetensors"
    assert called("measure", model, "--tokens", 600, "--save", saved)[0] == 0
    for other in (saved, model / "model.safetensors"):
        fails(called, [str(other), "not a shard"], 2, "--merge", *shards, other)
    for unreadable in (tmp_path / "nothing.safetensors", tmp_path):
        fails(called, str(unreadable), 3, "--merge", *shards, unreadable)


# What the command does not take


@pytest.mark.parametrize("which", ["0/4", "5/4", "x", "", "1", "1/", "-1/4"])
def test_shares_that_do_not_exist(called, model, tmp_path, which):
    fails(called, "i/n", 2, model, "--shard", which, "--save", tmp_path / "x", "--tokens", 600, folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shard", "1/2"], "--save"),
        (["--shard", "1/2", "--save", "x", "--solver", "bottom"], "--solver"),
        (["--shard", "1/2", "--save", "x", "--tau", "0.1"], "--tau"),
        (["--shard", "1/2", "--save", "x", "--merge"], "--shard"),
        (["--merge", "--tokens", "600"], "--tokens"),
        (["--merge", "--batch-size", "4"], "--batch-size"),
        (["--merge", "--twin", "0"], "--twin"),
        (["--merge", "--trust-remote-code"], "--trust-remote-code"),
        (["--merge", "--text", "x"], "--text"),
        (["another"], "2 models"),
    ],
)
def test_options_that_exclude_each_other(called, model, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    fails(called, says, 2, model, *arguments, folder=tmp_path)


def test_merging_needs_files_and_sane_options(called, shards):
    fails(called, "no shards were given", 2, "--merge")
    fails(called, "tau", 2, "--merge", *shards, "--tau", 7)
    fails(called, "magic", 2, "--merge", *shards, "--solver", "magic")


def test_too_few_tokens_are_refused_before_anything_is_run(called, model, tmp_path):
    fails(called, "N - 1 <= d", 2, model, "--tokens", 50, "--shard", "1/2", "--save", tmp_path / "x", folder=tmp_path)


def test_a_place_that_cannot_be_written(called, model, tmp_path):
    place = tmp_path / "no" / "such" / "place"
    fails(called, str(place), 3, model, "--tokens", 600, "--shard", "1/2", "--save", place, folder=tmp_path)
