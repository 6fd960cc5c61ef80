"""`diff` finds planted changes and nothing else, and its conditions decide the exit code."""

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deadreckon import diff
from deadreckon.checkpoint.source import open_model
from deadreckon.errors import UsageError
from deadreckon.kernel.compare import largest_angle
from deadreckon.verbs.diff import FAIL_KEYS, parse_condition

FINAL = "encoder.layer.5.output.LayerNorm"
INNER = "encoder.layer.2.output.LayerNorm"


@pytest.fixture
def changed(minilm, tmp_path):
    """MiniLM with some tensors replaced; returns its directory."""

    def make(change):
        tensors = load_file(minilm / "model.safetensors")
        save_file({**tensors, **change(tensors)}, tmp_path / "model.safetensors")
        shutil.copy(minilm / "config.json", tmp_path)
        return str(tmp_path)

    return make


def test_a_model_does_not_differ_from_itself(minilm):
    same = diff(str(minilm), str(minilm))
    assert (same.died, same.came_alive, same.dead_count_change, same.kind_change) == (0, 0, 0, 0)
    assert same.largest_gain_change == same.fingerprint_change == 0.0
    # Orthonormal columns are so to a few roundings a coordinate.
    assert same.largest_kernel_angle < 384 * np.finfo(float).eps
    assert len(same.norms) == 13


def test_gains_that_died_and_came_alive_are_counted_where_they_are(minilm, changed):
    def change(tensors):
        inner, final = tensors[f"{INNER}.weight"].copy(), tensors[f"{FINAL}.weight"].copy()
        inner[[5, 9]] = 1e-9
        final[223] = 0.5  # one of the three that training had driven to zero
        return {f"{INNER}.weight": inner, f"{FINAL}.weight": final}

    found = diff(str(minilm), changed(change))
    by_name = {norm.norm: norm for norm in found.norms}
    assert by_name[INNER].died == [5, 9]
    assert by_name[FINAL].came_alive == [223]
    assert (found.died, found.came_alive, found.dead_count_change) == (2, 1, -1)
    assert found.kernel_angle > 0.1  # the kernel leaned on that coordinate
    assert found.dead_angle == math.pi / 2  # another dimension
    untouched = [norm for norm in found.norms if norm.norm not in (INNER, FINAL)]
    assert all(norm.gain_change == 0.0 and not norm.died for norm in untouched)


def test_half_precision_moves_gains_by_its_rounding(minilm, changed):
    found = diff(str(minilm), changed(lambda t: {n: v.astype(np.float16) for n, v in t.items() if v.dtype != np.int64}))
    gains = load_file(minilm / "model.safetensors")
    largest = max(np.abs(v).max() / np.median(np.abs(v)) for n, v in gains.items() if n.endswith("LayerNorm.weight"))
    assert 0 < found.largest_gain_change <= 2.0**-11 * largest
    assert found.dead_count_change == 0
    assert found.dead_angle < 1e-3
    # 4.8e-33 and two more become zero: the kernel is theirs, and no longer one direction.
    assert found.kernel_angle == math.pi / 2
    assert abs(found.fingerprint_change) < 1e-3
    assert found.kind_change == 0


def test_another_format_is_compared_at_its_end(smollm2, tmp_path):
    gain = open_model(smollm2).vector("output_norm.weight")
    save_file({"model.norm.weight": 1.01 * gain}, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = diff(str(smollm2), str(tmp_path))
    assert found.compared == "end norms"
    largest = np.abs(gain).max() / np.median(np.abs(gain))
    assert found.largest_gain_change == pytest.approx(0.01 * largest, rel=1e-4)
    assert found.fingerprint_after is None
    with pytest.raises(UsageError, match="fingerprint_change has no value"):
        diff(str(smollm2), str(tmp_path), fail_if=["fingerprint_change > 0"])


def test_other_models_are_refused_in_one_line(minilm, smollm2, changed):
    with pytest.raises(UsageError, match=r"384 gains .* 576"):
        diff(str(minilm), str(smollm2))
    tensors = load_file(minilm / "model.safetensors")
    shallow = {n: t for n, t in tensors.items() if "layer.2.output.LayerNorm" not in n}
    other = changed(lambda _: {})
    save_file(shallow, f"{other}/model.safetensors")
    with pytest.raises(UsageError, match=rf"{INNER} only in one"):
        diff(str(minilm), other)


@pytest.mark.parametrize(
    ("condition", "failed"),
    [
        ("died == 1", True),
        ("died>=1", True),
        ("died > 1", False),
        ("came_alive != 0", False),
        ("largest_gain_change > 1e-3", True),
        ("kind_change != 0", False),
        ("dead_count_change < .5", True),
    ],
)
def test_conditions_decide_the_exit_code(called, minilm, changed, condition, failed):
    def change(tensors):
        gain = tensors[f"{INNER}.weight"].copy()
        gain[7] = 0.0
        return {f"{INNER}.weight": gain}

    other = changed(change)
    code, out, _ = called("diff", minilm, other, "--fail-if", condition, "--fail-if", "kernel_angle > 1", "--json")
    assert code == int(failed)
    assert json.loads(out)["failed"] == ([parse_condition(condition)[0]] if failed else [])


@pytest.mark.parametrize(
    "bad", ["", "kernel_angle", "kernel_angle >", "angle > 1", "died => 1", "died > x", "norms > 1"]
)
def test_a_condition_that_is_none_lists_the_keys(called, minilm, bad):
    code, _, err = called("diff", minilm, minilm, "--fail-if", bad)
    assert code == 2
    assert all(key in err for key in FAIL_KEYS)


def test_largest_angle():
    basis = np.eye(4)
    assert largest_angle(basis[:, :1], basis[:, :2]) == math.pi / 2
    assert largest_angle(basis[:, :0], basis[:, :0]) == 0.0
    for angle in (1e-9, 0.3, math.pi / 2):
        turned = basis[:, :2].copy()
        turned[:, 1] = math.cos(angle) * basis[:, 1] + math.sin(angle) * basis[:, 2]
        assert largest_angle(basis[:, :2], turned) == pytest.approx(angle, rel=1e-12)
