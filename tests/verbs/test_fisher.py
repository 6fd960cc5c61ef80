"""``fisher`` as Python and the command line call it."""

import json

import pytest
import torch

import deadreckon
from deadreckon.errors import UsageError
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.tiny import tiny_model
from deadreckon.results.fisher import Fisher


def drawn(model_type, head=True, **settings):
    model = tiny_model(model_type, head=head, **settings)
    redraw_affine(model, "lognormal:0.5", 0)
    return model


def test_the_head_of_a_language_model():
    record = deadreckon.fisher(drawn("gpt_neox"))
    (site,) = record.sites
    assert (site.site, site.readers, site.norm) == ("head", ["lm_head"], "gpt_neox.final_layer_norm")
    assert (site.remedy, site.virtual, site.closed_form) == ("shift", False, True)
    assert (record.metric, record.tokens) == ("softmax", 256)
    assert record.holds
    assert site.is_dead
    assert (site.is_gauge, site.naive_is_gauge) == (True, False)
    assert site.ratio <= 1e-10
    # In float32 the norm's own rounding of w.y, 1e-7 beside c, is all that may part the two.
    assert site.naive == pytest.approx(site.naive_expected, rel=1e-5)
    assert [step.step for step in site.gauge] == [1e-3, 1e-2, 1e-1, 1.0, 10.0]
    assert all(step.kl < 1e-10 < step.naive_kl for step in site.gauge[1:])
    assert "only up to a shift" in site.says
    assert Fisher.from_dict(json.loads(record.to_json())) == record


def test_all_sites_of_a_model_without_a_head():
    record = deadreckon.fisher(drawn("bert", head=False), site="all", tokens=16)
    assert record.metric == "gaussian"
    assert record.holds
    assert [site.remedy for site in record.sites] == ["bias"] * len(record.sites)
    assert not any("pooler" in site.site for site in record.sites)
    assert any("nothing that is put out depends on it: pooler.dense" in warning for warning in record.warnings)
    # Keys alone: a softmax over positions does not see what is the same at all of them.
    unseen = {site.site.rpartition(".")[2] for site in record.sites if site.naive_is_gauge}
    assert unseen == {"key"}
    keys = [site for site in record.sites if site.site.endswith("key")]
    assert all("goes unseen here" in site.says for site in keys)


def test_an_rmsnorm_is_a_control_and_no_failure():
    record = deadreckon.fisher(drawn("llama"))
    (site,) = record.sites
    assert not site.has_kernel
    assert not site.is_dead
    assert 1e-2 <= site.ratio <= 1e2
    assert record.holds
    assert "no kernel" in site.says


def test_a_zero_shift_tests_nothing_and_it_is_said():
    record = deadreckon.fisher(tiny_model("gpt_neox", head=True))
    assert record.sites[0].remedy == "nothing"
    assert record.holds
    assert any("lognormal:0.5" in warning for warning in record.warnings)


def test_a_dead_direction_that_is_not_one_fails_the_record(monkeypatch):
    model = drawn("gpt_neox")
    norm = model.gpt_neox.final_layer_norm
    plain = norm.forward
    # Looks like a LayerNorm where it is probed, alone in float64, and is none where the model runs it.
    norm.forward = lambda x: plain(x) + (0.01 * x if x.dtype == torch.float32 else 0.0)
    record = deadreckon.fisher(model)
    (site,) = record.sites
    assert not site.is_dead
    assert not record.holds
    assert "against the theory" in site.says


def test_the_same_seed_gives_the_same_figures():
    model = drawn("gpt2")
    one, two, other = (deadreckon.fisher(model, seed=seed, gauge=False) for seed in (0, 0, 1))
    assert one.sites == two.sites
    assert one.sites != other.sites
    assert one.sites[0].gauge == []
    assert one.sites[0].is_gauge is None


def test_bad_options():
    with pytest.raises(UsageError, match="at least 8 random directions"):
        deadreckon.fisher("random:gpt2", draws=3)
    with pytest.raises(UsageError, match=r"has no head.*--site all"):
        deadreckon.fisher(drawn("bert", head=False))
    with pytest.raises(UsageError, match=r"depends on pooler\.dense"):
        deadreckon.fisher(drawn("bert", head=False), site="pooler", tokens=4)
    with pytest.raises(UsageError, match="never a trained one"):
        deadreckon.fisher(drawn("gpt2"), affine="lognormal:0.5")


class TestCommand:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("model")
        drawn("gpt_neox").save_pretrained(folder)
        return folder

    def test_json(self, called, folder, tmp_path):
        out = tmp_path / "fisher.json"
        code, printed, err = called("fisher", folder, "--site", "layers.2.mlp", "--site", "head", "--json", "-o", out)
        assert (code, err) == (0, "")
        record = json.loads(printed)
        assert json.loads(out.read_text()) == record
        assert [site["site"] for site in record["sites"]] == ["gpt_neox.layers.2.mlp.dense_h_to_4h", "head"]
        site = record["sites"][0]
        assert {"site", "dead", "naive", "random", "ratio", "floor", "gauge"} <= site.keys()
        assert {"step", "max_logit_change", "kl"} <= site["gauge"][0].keys()
        assert len(site["random"]) == 8
        assert record["environment"]["dtype"] == "float32"

    def test_table(self, called, folder):
        code, printed, _ = called("fisher", folder, "--no-gauge")
        assert code == 0
        assert "shifts every token" in printed

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--site", "layers.9.mlp"), "does not exist"),
            (("--save", "x.safetensors"), "no vectors"),
            (("--draws", "2"), "draws"),
        ],
    )
    def test_bad_usage(self, called, folder, arguments, message):
        code, printed, err = called("fisher", folder, *arguments)
        assert code == 2
        assert printed == ""
        assert message in err
