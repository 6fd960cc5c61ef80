"""Images and sound from files: through the model's own processor, every bad file named, skipped only when asked."""

import json
import wave

import numpy as np
import pytest
import torch

from deadreckon.errors import InputError, UnreachableError, UsageError
from deadreckon.forward.audio import decoded, resampled
from deadreckon.forward.images import image_calibration
from deadreckon.forward.load import Loaded
from deadreckon.forward.media import find_media
from deadreckon.forward.modality import modality
from deadreckon.forward.processors import load_processor
from deadreckon.forward.tiny import tiny_model
from deadreckon.verbs.inputs import InputOptions, choose_inputs
from deadreckon.verbs.measure import measure
from deadreckon.verbs.shards import merge_shards

Image = pytest.importorskip("PIL.Image")

RATE = 16000


def picture(path, seed=0, size=(50, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def sound(path, samples, rate=RATE, width=2):
    """A mono PCM file; samples in [-1, 1)."""
    whole = np.round(np.asarray(samples) * (1 << (8 * width - 1))).astype(np.int64)
    data = (
        (whole + 128).astype(np.uint8) if width == 1 else whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    )
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data.tobytes())


def tone(seconds, rate=RATE, hertz=440):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def saved(folder, model_type, preprocessor, name="preprocessor_config.json", **settings):
    folder.mkdir(exist_ok=True)
    tiny_model(model_type, **settings).save_pretrained(folder)
    (folder / name).write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A tiny ViT on disk, with the description of its image processor."""
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    return saved(tmp_path_factory.mktemp("vit"), "vit", settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty images of several formats, one of them in a subfolder, beside files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(30):
        picture(folder / ("sub" if index == 7 else ".") / f"{index:02}.{('png', 'jpg', 'bmp')[index % 3]}", index)
    (folder / "labels.csv").write_text("a,b\n")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.fixture
def damaged(tmp_path):
    """Thirty images, one of them no image, one cut off, one empty."""
    for index in range(30):
        picture(tmp_path / f"{index:02}.png", index)
    whole = (tmp_path / "03.png").read_bytes()
    (tmp_path / "00.png").write_text("not an image")
    (tmp_path / "03.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "05.png").write_bytes(b"")
    return tmp_path


# Images


def test_images_are_measured(vit, folder):
    found = measure(vit, images=[folder], tokens=400)
    assert (found.protocol.status, found.tokens, found.skipped_inputs) == ("ok", 400, 0)
    assert found.data == f"30 images of {folder.name}"
    assert found.distinct_inputs is None


def test_pixels_are_those_that_the_processor_makes(vit, tmp_path):
    pixels = picture(tmp_path / "a.png")
    process = load_processor(vit, "image")
    model = tiny_model("vit")
    made = image_calibration(
        model, find_media([tmp_path], kind="image", extensions={".png"}), lambda: process,
        words=None, describe="x", batch_size=4, skip_bad=False,
    )  # fmt: skip
    (batch,) = made.batches()
    expected = process(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    assert torch.equal(next(made.batches())["pixel_values"], expected)  # every pass sees the same


def test_every_unreadable_image_is_named(vit, damaged):
    with pytest.raises(InputError) as caught:
        measure(vit, images=[damaged], tokens=200)
    message = str(caught.value)
    assert message.startswith("3 of 30 image inputs cannot be read: ")
    assert all(f"{damaged / name}: " in message for name in ("00.png", "03.png", "05.png"))
    assert "01.png" not in message
    assert "--skip-bad" in message


def test_skipped_images_are_counted_and_change_nothing_else(vit, damaged):
    found = measure(vit, images=[damaged], tokens=400, skip_bad=True)
    assert found.skipped_inputs == 3
    assert found.data == f"27 images of {damaged.name}"
    assert [w for w in found.warnings if "skipped" in w and "03.png" in w and "05.png" in w]
    good = [path for path in sorted(damaged.iterdir()) if path.name not in {"00.png", "03.png", "05.png"}]
    other = measure(vit, images=good, tokens=400)
    assert (other.skipped_inputs, other.lambda_max) == (0, found.lambda_max)
    assert not [w for w in other.warnings if "skipped" in w]


def test_all_images_bad(vit, tmp_path):
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(InputError, match=r"none of the 1 image inputs can be read: .*a\.png"):
        measure(vit, images=[tmp_path], tokens=200, skip_bad=True)


def test_a_folder_without_images_and_one_that_is_not_there(vit, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="no image file is in this folder"):
        measure(vit, images=[tmp_path])
    with pytest.raises(UnreachableError, match="no such file"):
        measure(vit, images=[tmp_path / "nowhere"])


def test_options_that_do_not_fit(vit, folder, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("words")
    cases = [
        ({"images": [folder], "audio": [folder]}, "given too"),
        ({"images": [folder], "data": "random"}, "random was asked for and images given"),
        ({"images": [folder], "data": "text"}, "text was asked for and images given"),
        ({"data": "images"}, "no images were named"),
        ({"data": "video"}, "unknown data 'video'"),
        ({"images": [folder], "text": [text]}, "takes no text beside images"),
        ({"audio": [folder / "00.png"]}, "takes no sound"),
        ({"data": "text"}, "takes pixel_values, not text"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError, match=message):
            measure(vit, **options)
    with pytest.raises(UsageError, match="takes no images"):
        measure(tiny_model("gpt_neox"), images=[folder])
    with pytest.raises(UsageError, match="comes without an image processor"):
        measure(tiny_model("vit"), images=[folder])
    with pytest.raises(UsageError, match="does not say how it puts images beside text"):
        measure(tiny_model("clip"), images=[folder], processor=load_processor(vit, "image"))


def test_a_single_path_needs_no_list(vit, folder):
    assert measure(vit, images=folder, tokens=200).tokens == 200


def test_few_images_are_said_to_be_few(vit, tmp_path):
    for index in range(8):
        picture(tmp_path / f"{index}.png", index)
    found = measure(vit, images=[tmp_path])
    assert found.tokens == 8 * 17
    assert any("held only 136" in warning for warning in found.warnings)


def test_a_loaded_model_takes_a_processor(vit, folder):
    found = measure(tiny_model("dinov2"), images=[folder], processor=load_processor(vit, "image"), tokens=300)
    assert found.protocol.status == "ok"


def test_a_damaged_processor_description(vit, folder, tmp_path):
    for text, error in (("{", InputError), ('{"image_processor_type": "Nonsense"}', UnreachableError)):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(error, match=r"preprocessor_config\.json"):
            load_processor(tmp_path, "image")


def test_shards_count_too(called, vit, damaged, tmp_path):
    options = ("--images", damaged, "--skip-bad", "--tokens", "400", "--json")
    files = [tmp_path / f"{part}.safetensors" for part in (1, 2)]
    for part, file in enumerate(files, 1):
        code, out, _ = called("measure", vit, *options, "--shard", f"{part}/2", "--save", file)
        assert (code, json.loads(out)["skipped_inputs"]) == (0, 3)
    assert merge_shards(files).skipped_inputs == 3


# Videos and images among tokens


@pytest.mark.parametrize("model_type", ["videomae", "vjepa2"])
def test_successive_images_make_clips(tmp_path, folder, model_type):
    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    if model_type == "videomae":
        where = saved(tmp_path, model_type, {"image_processor_type": "VideoMAEImageProcessor", **size})
    else:
        settings = {"video_processor_type": "VJEPA2VideoProcessor", **size}
        where = saved(tmp_path, model_type, settings, "video_preprocessor_config.json")
    model = tiny_model(model_type)
    options = InputOptions(images=[folder])
    made = choose_inputs(Loaded(model, lambda: None, processor=lambda kind: load_processor(where, kind)), options, 0)
    assert made.describe == f"7 clips of 4 images of {folder.name}"
    (batch,) = made.batches()
    assert tuple(batch[model.main_input_name].shape) == (7, 4, 3, 32, 32)
    with torch.no_grad():
        model(**batch)
    # The frames of a clip are successive images.
    one = load_processor(where, "image")(images=Image.open(folder / "01.jpg").convert("RGB"), return_tensors="pt")
    assert torch.equal(batch[model.main_input_name][0, 1], one["pixel_values"].reshape(3, 32, 32))


class Words:
    """A tokenizer: one id a word."""

    model_max_length = 64

    def __call__(self, texts, **_):
        return {"input_ids": [[10 + len(word) % 50 for word in text.split()] for text in texts]}


@pytest.mark.parametrize("tokenizer", [None, Words()])
def test_images_among_tokens(folder, tmp_path, tokenizer):
    settings = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = tiny_model("gemma3")
    text = tmp_path / "words.txt"
    text.write_text("one three five " * 9)
    few = sorted(folder.glob("0[0-4].*"))
    options = InputOptions(images=few, text=[text] if tokenizer else [])
    loaded = Loaded(model, lambda: tokenizer, processor=lambda kind: load_processor(tmp_path, kind))
    batch = next(choose_inputs(loaded, options, 0).batches())
    labels = modality(batch, model.config)
    assert batch["input_ids"].shape == (5, 512)
    assert labels.sum(1).tolist() == [4] * 5
    assert "num_crops" not in batch
    with torch.no_grad():
        model(**batch)
    if tokenizer:
        words = batch["input_ids"][labels == 0]
        assert set(words.tolist()) == {13, 15, 14, model.config.boi_token_index, model.config.eoi_token_index}
    assert (
        measure(
            model, images=few, tokens=600, tokenizer=tokenizer, processor=load_processor(tmp_path, "image")
        ).protocol.status
        == "ok"
    )


def test_images_of_many_sizes_among_tokens(tmp_path):
    """Gemma 4 makes as many tokens of an image as its shape asks for: labels count the patches that are not padding."""
    for index, size in enumerate([(48, 48), (48, 96), (200, 48), (48, 48)]):
        picture(tmp_path / f"{index}.png", index, size)
    # Patches of 8 pixels, pooled 3 x 3.
    settings = {"image_processor_type": "Gemma4ImageProcessor", "patch_size": 8, "max_soft_tokens": 70}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = tiny_model("gemma4")
    loaded = Loaded(model, lambda: None, processor=lambda kind: load_processor(tmp_path, kind))
    batches = list(choose_inputs(loaded, InputOptions(images=[tmp_path]), 0).batches())
    counts = []
    for batch in batches:
        real = (batch["image_position_ids"] >= 0).all(-1).sum(1) // 9
        assert modality(batch, model.config).sum(1).tolist() == real.tolist()
        counts += real.tolist()
        with torch.no_grad():
            model(**batch)
    assert len(counts) == 4
    assert len(set(counts)) > 1


# Sound


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    settings = {"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 1, "feature_size": 80}
    return saved(tmp_path_factory.mktemp("whisper"), "whisper", settings, max_source_positions=50)


def test_sound_is_measured_by_whisper(whisper, tmp_path):
    sound(tmp_path / "a.wav", tone(12.3))
    found = measure(whisper, audio=[tmp_path], tokens=300)
    assert (found.protocol.status, found.data) == ("ok", f"1 sounds of {tmp_path.name}")
    assert measure(whisper, audio=[tmp_path], tokens=300, norm="encoder.layer_norm").protocol.status == "ok"
    assert measure(whisper, tokens=300).data == "random spectrograms and token ids, seed 0"


def test_features_are_those_that_the_extractor_makes(whisper, tmp_path):
    samples = np.round(tone(2.5) * 2**15) / 2**15
    sound(tmp_path / "a.wav", samples)
    model = tiny_model("whisper", max_source_positions=50)
    loaded = Loaded(model, lambda: Words(), processor=lambda kind: load_processor(whisper, kind))
    (batch,) = choose_inputs(loaded, InputOptions(audio=[tmp_path]), 0).batches()
    extract = load_processor(whisper, "audio")
    expected = extract(samples[RATE : 2 * RATE].astype(np.float32), sampling_rate=RATE, return_tensors="pt")
    assert batch["input_features"].shape == (3, 80, 100)  # two whole seconds and a half one
    assert torch.equal(batch["input_features"][1], expected["input_features"][0])
    assert batch["decoder_input_ids"].shape == (3, 38)
    assert not torch.equal(batch["decoder_input_ids"][0], batch["decoder_input_ids"][1])  # the text goes on


def test_sound_is_measured_by_wav2vec2(tmp_path):
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    where = saved(tmp_path / "model", "wav2vec2", settings, do_stable_layer_norm=True)
    sound(tmp_path / "a.wav", tone(11.5) + 0.1)
    found = measure(where, audio=[tmp_path / "a.wav"], tokens=1000)
    assert found.protocol.status == "ok"
    assert found.tokens == 499 + 74  # 10 s and 1.5 s at 320 samples a step, less the window


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width(tmp_path, width):
    expected = tone(0.2)
    sound(tmp_path / "a.wav", expected, width=width)
    samples, rate = decoded((tmp_path / "a.wav").read_bytes())
    assert rate == RATE
    # Half a step of the width, and float32.
    assert np.abs(samples - expected).max() <= 0.5 / (1 << (8 * width - 1)) + 2**-24


def test_channels_are_averaged(tmp_path):
    left, right = np.full(4000, 1000, "<i2"), np.full(4000, 3000, "<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.stack([left, right], 1).tobytes())
    samples, rate = decoded((tmp_path / "a.wav").read_bytes())
    assert (len(samples), rate) == (4000, 8000)
    assert np.allclose(samples, 2000 / 2**15, rtol=2**-23)


def test_resampling_keeps_a_tone_and_drops_what_is_too_high():
    # A whole number of periods: band-limited interpolation is then exact to float32.
    found = resampled(tone(1, 44100).astype(np.float32), 44100, RATE)
    assert np.abs(found - tone(1)).max() <= 1e-6
    high = resampled(tone(1, 44100, 9000).astype(np.float32), 44100, RATE)
    assert np.abs(high).max() <= 1e-6


def test_bad_sounds_are_named_and_skipped(whisper, tmp_path):
    sound(tmp_path / "good.wav", tone(9))
    sound(tmp_path / "short.wav", tone(0.05))
    whole = (tmp_path / "good.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(InputError) as caught:
        measure(whisper, audio=[tmp_path], tokens=200)
    message = str(caught.value)
    assert message.startswith("3 of 4 audio inputs cannot be read: ")
    assert all(f"{tmp_path / name}.wav: " in message for name in ("short", "cut", "text"))
    assert measure(whisper, audio=[tmp_path], tokens=200, skip_bad=True).skipped_inputs == 3
    with pytest.raises(UsageError, match="comes without a feature extractor"):
        measure(tiny_model("whisper"), audio=[tmp_path / "good.wav"])
    with pytest.raises(UsageError, match="takes no sound"):
        measure(tiny_model("gpt_neox"), audio=[tmp_path / "good.wav"])


# Data sets


def test_data_sets_need_their_package(vit, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UnreachableError, match="pip install datasets"):
        measure(vit, images=["hf:someone/pictures"])


def test_saved_data_sets(vit, folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = sorted(str(path) for path in folder.rglob("[0-9]*"))
    table = datasets.Dataset.from_dict({"label": list(range(30)), "picture": paths})
    table = table.cast_column("picture", datasets.Image())
    table.save_to_disk(tmp_path / "one")
    found, files = (measure(vit, images=where, tokens=400) for where in ([tmp_path / "one"], paths))
    assert found.lambda_max == files.lambda_max
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "two")
    with pytest.raises(UsageError, match="splits train, test"):
        measure(vit, images=[tmp_path / "two"])
    assert measure(vit, images=[tmp_path / "two" / "test"], tokens=400).lambda_max == files.lambda_max
    table.remove_columns("picture").save_to_disk(tmp_path / "none")
    with pytest.raises(UsageError, match="no column of images among label"):
        measure(vit, images=[tmp_path / "none"])


# Command line


def test_command_line(called, vit, damaged):
    words = ("measure", vit, "--images", damaged, "--tokens", "300", "--json")
    code, out, err = called(*words)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "00.png" in err
    assert "05.png" in err
    code, out, err = called(*words, "--skip-bad")
    assert (code, err) == (0, "")
    assert json.loads(out)["skipped_inputs"] == 3
    code, out, err = called("measure", vit, "--data", "images")
    assert code == 2
    assert "no images were named" in err
