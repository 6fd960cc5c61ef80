"""``deadreckon trace`` as a user calls it."""

import json

import pytest
import torch
from safetensors.numpy import load_file

from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_sizes import WIDTH


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("gpt_neox").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A ViT with its processor, and pictures of which one is broken."""
    from PIL import Image
    from transformers import ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    tiny_model("vit").save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    pictures = folder / "pictures"
    pictures.mkdir()
    generator = torch.Generator().manual_seed(0)
    for k in range(12):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(pictures / f"{k:02}.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    return folder


def test_json_and_the_files_that_were_asked_for(called, model, tmp_path):
    out, vectors = tmp_path / "trace.json", tmp_path / "trace.safetensors"
    code, printed, err = called(
        "trace", model, "--blocks", "0,2-3", "--bottom", "2", "--json", "-o", out, "--save", vectors
    )
    assert (code, err) == (0, "")
    record = json.loads(printed)
    assert json.loads(out.read_text()) == record
    assert [node["index"] for node in record["blocks"]] == [-1, 0, 1, 2, 3]
    assert record["verdict"] in {"preserved", "eased"}
    assert record["tokens"] == 8 * WIDTH
    assert record["files"]
    assert load_file(vectors)["directions"].shape == (5, 2, WIDTH)


def test_the_table_names_the_verdict(called, model):
    code, printed, _ = called("trace", model, "--quiet")
    assert code == 0
    assert "verdict: " in printed
    line = next(line for line in printed.splitlines() if line.startswith("sigma_min over depth"))
    bars = line.removeprefix("sigma_min over depth").strip()
    assert len(bars) == 5
    assert {"▁", "█"} <= set(bars)


def test_help_says_that_it_is_no_matrix_trace(called):
    assert "not that of a matrix" in called("trace", "--help")[1]
    assert "not a matrix trace" in called("--help")[1].replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--blocks", "3-1"], "neither a number nor a range"),
        (["--blocks", "first"], "neither a number nor a range"),
        (["--blocks", "9"], "there is no block 9"),
        (["--memory", "much"], "no amount of memory"),
        (["--memory", "1KB"], "one Gram of"),
        (["--collapse-ratio", "1"], "collapse-ratio"),
        (["--blocks-path", "nowhere"], "choose one of layers (4)"),
        (["--tokens", "10"], "with N < d"),
        (["--images", "nowhere"], "deadreckon"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(called, model, words, message):
    code, out, err = called("trace", model, *words)
    assert code in {2, 3}
    assert out == ""
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err


def test_unreadable_images_are_named_and_counted(called, images):
    words = ["trace", images, "--images", images / "pictures", "--json"]
    code, out, err = called(*words)
    assert code == 2
    assert "broken.png" in err
    assert out == ""
    code, out, err = called(*words, "--skip-bad")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["skipped_inputs"] == 1
    assert any("broken.png" in warning for warning in record["warnings"])
    assert record["tokens"] > WIDTH
