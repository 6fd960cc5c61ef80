"""Reading from a hub: what is asked of it, what is not, and what a server that misbehaves is told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import hub_server
import numpy as np
import pytest
from hub_server import TOKEN, Repository

import deadreckon
from deadreckon.checkpoint import hub as hub_module
from deadreckon.checkpoint import stores
from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.source import Source, open_model, parse_model
from deadreckon.errors import InputError, UnreachableError, UsageError
from deadreckon.verbs.census import census
from deadreckon.verbs.classify import classify
from deadreckon.verbs.read import read

D, LAYERS = 64, 6
CONFIG = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 4 * D,
    "vocab_size": 1 << 16,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
}


def bfloat16(values):
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()


def neox(folder: Path, rows: int = 1 << 16) -> dict:
    """A small GPT-NeoX in shards of 1.1 MB, the embeddings as large as `rows`."""
    rng = np.random.default_rng(0)
    shapes = {"gpt_neox.embed_in.weight": (rows, D)}
    for i in range(LAYERS):
        block = f"gpt_neox.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{block}.{norm}.bias": (D,), f"{block}.{norm}.weight": (D,)}
        for name, shape in {
            "attention.query_key_value": (3 * D, D),
            "attention.dense": (D, D),
            "mlp.dense_h_to_4h": (4 * D, D),
            "mlp.dense_4h_to_h": (D, 4 * D),
        }.items():
            shapes |= {f"{block}.{name}.bias": shape[:1], f"{block}.{name}.weight": shape}
    shapes |= {"gpt_neox.final_layer_norm.bias": (D,), "gpt_neox.final_layer_norm.weight": (D,)}
    shapes |= {"lm_head.weight": (rows, D)}
    vectors = {name: rng.normal(1, 0.1, shape) for name, shape in shapes.items() if len(shape) == 1}
    values = {name: bfloat16(vector) for name, vector in vectors.items()}
    folder.mkdir(parents=True)
    return hub_server.write_shards(folder, CONFIG, shapes, values, 1 << 17)


@pytest.fixture
def repository(hub, tmp_path):
    """``org/neox`` on the hub, and the same files in a directory."""
    files = neox(tmp_path / "local")
    hub.repositories["org/neox"] = Repository(files)
    return hub.repositories["org/neox"]


def same_norms(one, other):
    norms, others = ([(n.name, n.role, n.gain.tolist(), n.shift.tolist()) for n in model] for model in (one, other))
    assert norms == others


def files_of(hub):
    """The (last parts of the) paths of the storage that were asked for."""
    return {asked.path.partition("?")[0].rpartition("/")[2] for asked in hub.asked if asked.host == "storage"}


def of_weights(hub):
    return [asked for asked in hub.asked if ".safetensors?" in asked.path or asked.path.endswith(".safetensors")]


# --- names


@pytest.mark.parametrize(
    ("model", "repository", "inside", "revision"),
    [
        ("gpt2", "gpt2", ".", None),
        ("org/name", "org/name", ".", None),
        ("org/Name-3.1_8B@v1.0", "org/Name-3.1_8B", ".", "v1.0"),
        ("org/name@refs/pr/7", "org/name", ".", "refs/pr/7"),
        ("org/name/x.gguf@main", "org/name", "x.gguf", "main"),
        ("org/name/text_encoder/model.safetensors", "org/name", "text_encoder/model.safetensors", None),
    ],
)
def test_names_of_the_hub(model, repository, inside, revision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_model(model) == Source("hub", model)
    name = hub_module.HubName.parse(model)
    assert (name.repository, str(name.inside), name.revision) == (repository, inside, revision)
    assert str(name) == model


@pytest.mark.parametrize(
    "model", ["./org/name", "/org/name", "org/name/", "x.gguf", "dir/x.safetensors", "a--b", "a..b", "name@", "mini lm"]
)
def test_names_that_are_only_paths(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_model(model).scheme == "file"


def test_a_local_path_wins(repository, hub, tmp_path):
    (tmp_path / "org").mkdir()
    (tmp_path / "local").rename(tmp_path / "org" / "neox")
    reading = read("org/neox")
    assert (reading.revision, reading.transfer, hub.asked) == (None, None, [])
    assert read(Path("org/neox")).kind == "layernorm"


# --- reading


def test_the_same_norms_as_from_the_files_with_few_requests(repository, hub, tmp_path):
    reading = read("org/neox")
    local = read(tmp_path / "local")
    assert reading.to_dict()["norms"] == local.to_dict()["norms"]
    assert (reading.revision, local.revision) == (repository.commit, None)
    assert [f.sha256 for f in reading.files] == [f.sha256 for f in local.files]
    # The commit, the config, the index; the shard's redirect, its start with the header, the two adjacent vectors.
    assert [a.path.split("?")[0].rpartition("/")[2] for a in hub.asked[:3]] == [
        "main",
        "config.json",
        "model.safetensors.index.json",
    ]
    after = hub.asked[3:]
    assert len(after) <= 4
    assert len({a.path.split("?")[0].rpartition("/")[2] for a in after}) == 1
    assert sum(a.sent for a in after) <= (1 << 16) + 4 * D
    assert reading.transfer.requests == len(hub.asked)
    assert reading.transfer.bytes == hub.sent
    assert reading.bytes_read <= reading.transfer.bytes
    assert all(f"/resolve/{repository.commit}/" in a.path for a in hub.asked[1:] if a.host == "hub")


def test_a_long_header_takes_two_requests_and_the_vectors_one(hub, tmp_path):
    rng = np.random.default_rng(0)
    gain, shift = rng.normal(1, 0.1, D), rng.normal(0, 0.1, D)
    shapes = {f"gpt_neox.layers.0.experts.{i:05d}.weight": (D,) for i in range(2000)}
    shapes |= {"gpt_neox.final_layer_norm.bias": (D,), "gpt_neox.final_layer_norm.weight": (D,)}
    values = {"gpt_neox.final_layer_norm.bias": bfloat16(shift), "gpt_neox.final_layer_norm.weight": bfloat16(gain)}
    (tmp_path / "long").mkdir()
    files = hub_server.write_shards(tmp_path / "long", CONFIG, shapes, values, 1 << 40)
    hub.repositories["org/long"] = Repository(files)
    read("org/long")
    ranged = [a.range for a in of_weights(hub) if a.host == "storage"]
    header = int.from_bytes(files["model-00001-of-00001.safetensors"].read_bytes()[:8], "little")
    assert header > 1 << 16
    assert ranged[:2] == ["bytes=0-65535", f"bytes=65536-{header + 7}"]
    assert len(ranged) == 3
    start, stop = map(int, ranged[2].removeprefix("bytes=").split("-"))
    assert stop + 1 - start == 2 * 2 * D  # both vectors, in one range


def test_every_norm_is_read_with_few_requests_at_a_time(repository, hub, tmp_path):
    same_norms(find_norms(open_model("org/neox"), "all"), find_norms(open_model(tmp_path / "local"), "all"))
    norms = {f for f in files_of(hub) if f.endswith(".safetensors")}
    index = json.loads((tmp_path / "local" / "model.safetensors.index.json").read_text())["weight_map"]
    assert norms == {shard for name, shard in index.items() if "norm" in name}
    assert hub.sent < 200_000 + len(norms) * (1 << 16)


def test_what_is_no_norm_is_not_read(hub, tmp_path):
    """Embeddings of 60 GB: nothing but headers and norms crosses the wire."""
    hub.repositories["org/large"] = Repository(neox(tmp_path / "large", rows=15 * 10**9 // D))
    total = sum(path.stat().st_size for path in hub.repositories["org/large"].files.values())
    assert total > 59e9
    started = time.perf_counter()
    reading = read("org/large")
    assert (reading.transfer.requests, reading.kernel_dim) == (len(hub.asked), 1)
    assert hub.sent < 100_000
    assert time.perf_counter() - started < 5


def test_a_single_file_repository_and_a_folder_in_one(hub, build, tmp_path):
    gain = np.linspace(0.5, 1.5, 8, dtype=np.float32)
    config = json.dumps({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1}).encode()
    file = build.vectors(**{"model.norm.weight": gain})
    hub.repositories["gpt2"] = Repository({"config.json": config, "model.safetensors": file})
    hub.repositories["org/pipe"] = Repository({"text/config.json": config, "text/model.safetensors": file})
    for model in ("gpt2", "gpt2@main", "org/pipe/text", "org/pipe/text/model.safetensors"):
        reading = read(model)
        assert (reading.model, reading.kind, reading.smallest_gain) == (model, "rmsnorm", 0.5)
    with pytest.raises(InputError, match=r"org/pipe: this directory holds no checkpoint"):
        read("org/pipe")
    with pytest.raises(UnreachableError, match="org/pipe/vision: org/pipe holds no vision"):
        read("org/pipe/vision")


def test_sizes_that_the_hub_does_not_list(repository, hub, tmp_path):
    repository.list_sizes = False
    assert read("org/neox").to_dict()["norms"] == read(tmp_path / "local").to_dict()["norms"]


def test_gguf_reads_its_header_only(hub, smollm2):
    hub.repositories["org/smol"] = Repository({smollm2.name: smollm2, "README.md": b"#"})
    with pytest.raises(InputError, match=rf"org/smol: holds GGUF files: name the one.*org/smol/{smollm2.name}"):
        read("org/smol")
    hub.asked.clear()
    reading = read(f"org/smol/{smollm2.name}")
    assert reading.to_dict()["norms"] == read(smollm2).to_dict()["norms"]
    # The vocabulary is in the header; blocks double, so no more than twice the header comes.
    assert hub.sent < 2 * reading.bytes_read + (1 << 18)
    assert hub.sent < 0.1 * smollm2.stat().st_size
    assert len(hub.asked) <= 12


def test_a_torch_file_on_the_hub_is_read_by_ranges_too(hub, tmp_path):
    torch = pytest.importorskip("torch")
    from deadreckon.forward.tiny import tiny_model

    model = tiny_model("gpt2", vocab_size=1 << 14, bos_token_id=0, eos_token_id=0)
    torch.nn.init.normal_(model.ln_f.weight)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    data = (tmp_path / "pytorch_model.bin").read_bytes()
    config = json.dumps(model.config.to_dict()).encode()
    hub.repositories["org/old"] = Repository({"config.json": config, "pytorch_model.bin": data})
    reading = read("org/old")
    assert reading.final_norm == "ln_f.weight"
    assert np.array_equal(find_norms(open_model("org/old"))[0].gain, model.ln_f.weight.detach().double().numpy())
    assert reading.bytes_read < len(data) / 4  # the embeddings stay where they are


def test_a_damaged_torch_file_on_the_hub(hub):
    hub.repositories["org/old"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"\x80\2"})
    with pytest.raises(InputError, match=r"org/old/pytorch_model.bin"):
        read("org/old")


def test_classify_and_census(repository, hub, tmp_path):
    classified = classify("org/neox", tmp_path / "local")
    assert [(r.kind, r.revision) for r in classified.results] == [
        ("layernorm", repository.commit),
        ("layernorm", None),
    ]
    counted, local = census("org/neox"), census(tmp_path / "local")
    assert counted.by_reason == local.by_reason
    assert (counted.dead_dimensions, counted.revision) == (local.dead_dimensions, repository.commit)
    assert counted.dead_dimensions > 0


# --- leave to read


def test_the_token_goes_to_the_hub_alone(repository, hub, monkeypatch):
    repository.private = repository.gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read("org/neox").kind == "layernorm"
    assert {a.authorization for a in hub.asked if a.host == "hub"} == {f"Bearer {TOKEN}"}
    assert {a.authorization for a in hub.asked if a.host == "storage"} == {None}


@pytest.mark.parametrize(
    ("state", "model", "why"),
    [
        ({"gated": True}, "org/neox", r"gated: accept its conditions at http.*/org/neox, then log in with `hf auth"),
        ({"private": True}, "org/neox", r"no such file or directory here, and no such model on .*private"),
        ({}, "org/missing", r"^org/missing: no such file or directory here, and no such model on http"),
        ({}, "missing", r"^missing: no such file or directory here, and no such model on http"),
        ({}, "org/neox@v9", r"^org/neox@v9: the model is on the hub and has no revision 'v9'"),
        ({}, "org/neox/x.safetensors", r"org/neox holds no x.safetensors"),
    ],
)
def test_one_clear_line(state, model, why, repository, hub):
    vars(repository).update(state)
    with pytest.raises(UnreachableError, match=why) as caught:
        read(model)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert len(hub.asked) <= 2  # and no second attempts


# --- servers in trouble


@pytest.mark.parametrize(
    "act",
    [
        hub_server.status(429, Retry_After="1"),
        hub_server.status(500),
        hub_server.status(503),
        hub_server.drop(100),
        hub_server.short(10),
        hub_server.silent(1.0),
        hub_server.trickle(0.01, 4096),
    ],
    ids=["429", "500", "503", "dropped", "truncated", "silent", "slow"],
)
def test_a_bad_moment_is_waited_out(act, repository, hub, tmp_path):
    expected = read(tmp_path / "local").to_dict()["norms"]
    hub.fail(r"^storage .*\.safetensors", act)
    started = time.perf_counter()
    reading = read("org/neox")
    took = time.perf_counter() - started
    assert reading.to_dict()["norms"] == expected
    if any(a.status == 429 for a in hub.asked):
        assert took >= 1.0  # as long as the server asked for
    # What had come is not asked for again: all ranges of a shard together are no more than it was without trouble.
    assert hub.sent <= 100_000


def test_the_hub_itself_in_trouble(repository, hub):
    hub.fail("^hub /api/", hub_server.status(503), times=2)
    hub.fail("^hub .*config.json", hub_server.drop(5))
    hub.fail("^hub .*index.json", hub_server.status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"))
    assert read("org/neox").kind == "layernorm"
    assert len([a for a in hub.asked if a.path.startswith("/api/")]) == 3


@pytest.mark.parametrize(
    ("act", "why", "attempts"),
    [
        (hub_server.status(503), r"the server answered 503 \(tried 4 times\): try again later", 4),
        (hub_server.status(429, Retry_After="3600"), r"429 and asks to come back in 3600 s \(tried 1 time\)", 1),
        (hub_server.drop(0), r"the connection broke .*\(tried 4 times\)", 4),
        (hub_server.silent(1.0), r"nothing came for 0.5 s", 4),
        (hub_server.trickle(0.05), "the connection is too slow", 1),
        (hub_server.whole, "the server ignores byte ranges .it answered 200", 1),
        (hub_server.shifted(7), "asked for bytes 0 to .*, the server sends 'bytes 7-", 1),
        (hub_server.compressed, "sends it compressed", 1),
        (hub_server.status(206), "the server sends ''", 1),
        (hub_server.status(416), "the file ends before byte", 1),
        (hub_server.status(418), "the hub answered 418", 1),
        (hub_server.status(404), "model-00.*: the hub answered 404", 1),
        (hub_server.to("ftp://example.org/x"), "redirected from http: to ftp:", 1),
        (hub_server.to("http://[bad/x"), "redirected from http: to nowhere", 1),
    ],
    ids=lambda value: "" if callable(value) else None,
)
def test_what_is_not_waited_out(act, why, attempts, repository, hub):
    hub.fail(r"^storage .*\.safetensors", act, times=100)
    started = time.perf_counter()
    with pytest.raises(UnreachableError, match=why) as caught:
        read("org/neox")
    assert "signature" not in str(caught.value)
    asked = len([a for a in hub.asked if a.host == "storage"])
    assert asked == attempts or (asked < attempts and why.startswith("nothing came"))  # a busy server notes it late
    assert time.perf_counter() - started < 30


def test_redirects_in_a_circle(repository, hub):
    hub.fail(r"^storage ", lambda handler, *_: handler.answer(302, Location=handler.path), times=100)
    with pytest.raises(UnreachableError, match="redirected more than 6 times"):
        read("org/neox")
    assert len(of_weights(hub)) == 6


def test_a_server_that_ignores_ranges_is_not_downloaded_from(hub, tmp_path):
    hub.repositories["org/large"] = Repository(neox(tmp_path / "large", rows=10**9 // D))
    hub.fail(r"^storage ", hub_server.whole, times=100)
    with pytest.raises(UnreachableError, match="ignores byte ranges"):
        read("org/large")
    time.sleep(0.3)
    # A shard is up to 2 GB; what sockets buffer before the connection is closed is all that was sent.
    assert hub.sent < 32_000_000


def test_an_address_that_expired_is_asked_for_anew(repository, hub, monkeypatch):
    monkeypatch.setattr(stores, "_FIRST", 16)  # so that the vector is not in what came first
    checkpoint = open_model("org/neox")
    names = ["gpt_neox.final_layer_norm.weight"]
    assert checkpoint.tensors[names[0]].shape == (D,)
    hub.fail("^storage ", hub_server.status(403))
    assert checkpoint.vector(names[0]).shape == (D,)
    redirects = [a for a in hub.asked if a.status == 302]
    assert len(redirects) == 2


def test_what_a_truncated_answer_lacks_is_asked_for(repository, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_FIRST", 16)
    name = "gpt_neox.final_layer_norm.weight"
    checkpoint = open_model("org/neox")
    stop = checkpoint.tensors[name].stop
    hub.fail("^storage ", hub_server.short(10))
    np.testing.assert_array_equal(checkpoint.vector(name), open_model(tmp_path / "local").vector(name))
    assert hub.asked[-1].range == f"bytes={stop - 10}-{stop - 1}"


def test_an_endless_answer_is_cut_off(repository, hub):
    hub.fail("^hub /api/", hub_server.endless)
    with pytest.raises(UnreachableError, match="more than the 10000000 bytes"):
        read("org/neox")
    assert hub.sent < 50_000_000


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "not valid JSON"),
        (b"[]", "does not answer as a hub does"),
        (b'{"sha": "main", "siblings": []}', "does not answer as a hub does"),
        (b'{"sha": "' + b"0" * 40 + b'"}', "does not answer as a hub does"),
        (b'{"sha": "' + b"0" * 40 + b'", "siblings": [1, {}, {"rfilename": 3}]}', "holds no checkpoint"),
        (b'{"sha": "' + b"0" * 40 + b'", "siblings": [{"rfilename": "config.json", "size": -1}]}', "holds no check"),
    ],
)
def test_answers_of_no_hub(body, why, repository, hub):
    hub.fail("^hub /api/", lambda handler, *_: handler.answer(200, body))
    with pytest.raises((UnreachableError, InputError), match=why):
        read("org/neox")


def test_nobody_there(hub, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(UnreachableError, match=r"org/neox: 127.0.0.1 cannot be reached .*tried 2 times"):
        read("org/neox")
    assert time.perf_counter() - started < 3


# --- the cache


def test_cached_files_are_read_there(repository, hub, tmp_path):
    hub_api = pytest.importorskip("huggingface_hub")
    hub_api.snapshot_download("org/neox")
    expected = read(tmp_path / "local").to_dict()["norms"]
    hub.asked.clear()
    reading = read("org/neox")  # which commit it is the hub is asked; the files are at hand
    assert (reading.to_dict()["norms"], reading.revision) == (expected, repository.commit)
    assert [a.path.partition("?")[0] for a in hub.asked] == ["/api/models/org/neox/revision/main"]
    hub.asked.clear()
    pinned = read(f"org/neox@{repository.commit}")  # a commit never changes: nothing to ask
    assert (pinned.to_dict()["norms"], pinned.revision, hub.asked) == (expected, repository.commit, [])


def test_a_part_in_the_cache(repository, hub, tmp_path):
    hub_api = pytest.importorskip("huggingface_hub")
    for file in ("config.json", "model.safetensors.index.json"):
        hub_api.hf_hub_download("org/neox", file)
    hub.asked.clear()
    for model in ("org/neox", f"org/neox@{repository.commit}"):
        reading = read(model)
        assert reading.to_dict()["norms"] == read(tmp_path / "local").to_dict()["norms"]
        assert not [a for a in hub.asked if a.path.endswith(".json")]


def test_a_newer_commit_is_not_read_from_the_cache(repository, hub, tmp_path):
    hub_api = pytest.importorskip("huggingface_hub")
    hub_api.snapshot_download("org/neox")
    older = repository.commit
    repository.files = {**repository.files, "README.md": b"new"}
    assert repository.commit != older
    assert read("org/neox").revision == repository.commit


def test_offline(repository, hub, monkeypatch):
    hub_api = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnreachableError, match=r"org/neox: not in the cache \(.*leave --offline"):
        read("org/neox")
    assert hub.asked == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub_api.snapshot_download("org/neox")
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reading = read("org/neox")
    assert (reading.kind, reading.revision, hub.asked) == ("layernorm", repository.commit, [])


def test_without_an_answer_the_cache_will_do(repository, hub, monkeypatch):
    hub_api = pytest.importorskip("huggingface_hub")
    hub_api.snapshot_download("org/neox")
    hub.fail("^hub ", hub_server.status(503), times=100)
    assert read("org/neox").revision == repository.commit


# --- the command, as a process of its own


def command(hub, tmp_path, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = str(Path(deadreckon.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-m", "deadreckon", *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    return ran.returncode, ran.stdout, ran.stderr


def test_the_command(repository, hub, tmp_path):
    code, out, err = command(hub, tmp_path, "read", "org/neox", "--json")
    assert err == ""
    reading = json.loads(out)
    assert (code, err, reading["revision"]) == (0, "", repository.commit)
    assert reading["transfer"] == {"requests": len(hub.asked), "bytes": hub.sent}
    code, out, err = command(hub, tmp_path, "read", "org/missing")
    assert (code, out, err.count("\n")) == (3, "", 1)
    hub.asked.clear()
    code, out, err = command(hub, tmp_path, "classify", "org/neox", "--offline")
    assert (code, out, hub.asked) == (3, "", [])
    assert "not in the cache" in err


# --- other servers


def test_a_file_on_a_web_server(repository, hub, tmp_path):
    hub.repositories["plain"] = Repository({**repository.files})
    base = f"{hub.storage}/files/plain/"  # the same files, without an API
    shard = json.loads((tmp_path / "local" / "model.safetensors.index.json").read_text())["weight_map"][
        "gpt_neox.final_layer_norm.weight"
    ]
    expected = read(tmp_path / "local").to_dict()["norms"]
    for name in (shard, "model.safetensors.index.json"):
        hub.asked.clear()
        reading = read(f"{base}/{name}")
        assert (reading.to_dict()["norms"], reading.revision) == (expected, None)
        assert reading.model == f"{base}/{name}"
        assert reading.transfer.bytes == hub.sent
        assert {a.authorization for a in hub.asked} == {None}
    with pytest.raises(UnreachableError, match="no such file there"):
        read(f"{base}/missing.safetensors")


def test_a_signed_address_is_not_shown_and_not_used_for_other_files(repository, hub):
    shard = next(f for f in repository.files if f.endswith(".safetensors"))
    hub.repositories["plain"] = Repository(repository.files)
    with pytest.raises(UsageError) as caught:
        read(f"{hub.storage}/files/plain//{shard}?signature=secret")
    assert "secret" not in str(caught.value)
    assert {a.path.partition("?")[2] for a in hub.asked} == {"signature=secret"}
    assert "secret" not in str(parse_model("https://example.org/x.safetensors?signature=secret"))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.org/x.safetensors", "write https"),
        ("https://user:word@example.org/x.safetensors", "leave them out"),
        ("https://example.org/", "not the address of a file"),
        ("https://huggingface.co/org/name/tree/main", "as the hub does: org/name$"),
        ("https:///x.safetensors", "not the address of a file"),
        ("https://[bad/x.safetensors", "not the address of a file"),
    ],
)
def test_addresses_that_are_not_asked(url, why):
    with pytest.raises(UsageError, match=why) as caught:
        open_model(url)
    assert "word@" not in str(caught.value)


def test_nothing_of_the_network_is_imported_for_local_models(minilm):
    code = (
        "import sys; from deadreckon.verbs.read import read; read('demo:minilm');"
        "print(*sorted({'huggingface_hub', 'httpx', 'httpx2', 'requests', 'urllib.request', 'concurrent.futures',"
        "'deadreckon.checkpoint.remote', 'deadreckon.checkpoint.hub'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
