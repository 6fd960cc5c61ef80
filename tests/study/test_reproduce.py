"""The whole table at small scale: every claim that random weights can show is shown, and by a run, not by the list."""

import json
from collections import Counter
from dataclasses import replace

import pytest

import deadreckon
from deadreckon.cli.main import main
from deadreckon.errors import UsageError
from deadreckon.results.saved import load_record, record_of
from deadreckon.study import paper
from deadreckon.study import reproduce as module
from deadreckon.study.reproduce import conclude, plan_random, plan_trained, reproduce
from deadreckon.study.run import run_task
from deadreckon.study.store import Store


def result_of(task):
    return record_of(task.result)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    return folder, reproduce(scale="small", seeds=1, store=folder / "store")


def test_the_table_is_complete(small):
    _, found = small
    assert not found.failures
    listed = Counter(row.listed_as for row in found.models)
    assert listed == {"layernorm": 9, "rmsnorm": 5, "": 1}  # the last: Gemma 4 on several modalities
    assert [row.dtype for row in found.models] == ["float32"] * 15
    assert {row.data for row in found.models} == {"random token ids", "random pixels", "random token ids and images"}


def test_its_claims_hold(small):
    _, found = small
    verdicts = {claim.name: claim.verdict for claim in found.claims}
    for name in ("kernel", "no_kernel", "classification", "fisher", "gain"):
        assert verdicts[name] == "confirmed", name
    assert verdicts["residual"] in {"confirmed", "partly"}  # narrow streams may ease a little
    assert verdicts["depth"] == verdicts["further"] == "not_tested"
    for row in found.models:
        # Float64 rounds a projection of d terms to about d u, relative to the deviation, squared; the margin is 1e4.
        if row.kind_seen == "layernorm":
            assert row.dead_share_float64 < 1e4 * (row.hidden_size * 2.0**-53) ** 2, row.model
        else:
            assert row.dead_share_float64 > 1e-3, row.model


def test_going_on_computes_nothing_twice_and_ends_in_the_same_record(small):
    folder, found = small
    ran = []
    again = reproduce(scale="small", seeds=1, store=folder / "store", progress=lambda d, n, task: ran.append(task))
    assert set(ran) == {None}
    assert again == found
    assert load_record(folder / "store" / "reproduction.json") == found


def test_a_model_on_the_wrong_list_refutes_the_claim(small, monkeypatch):
    """Negative control: what decides is what was measured."""
    folder, _ = small
    tasks = [t for t in Store(folder / "store").tasks() if t.model == "random:pythia-160m-shrunk"]
    monkeypatch.setitem(paper.MODELS, "pythia-160m", "rmsnorm")
    verdicts = {claim.name: claim.verdict for claim in conclude(map(result_of, tasks), name="one").claims}
    assert verdicts["no_kernel"] == "refuted"
    assert verdicts["kernel"] == "not_tested"


def test_a_task_that_fails_is_named_and_the_rest_is_concluded(tmp_path, monkeypatch):
    plans = plan_random(["pythia-160m"], "-shrunk", ["float32"], seeds=1, device="cpu")
    plans = [
        replace(p, options={**p.options, "tokens": 5}) if p.verb == "measure" and "affine" in p.options else p
        for p in plans
    ]
    monkeypatch.setattr(module, "plan_random", lambda *_, **__: plans)
    found = reproduce(scale="small", store=tmp_path)
    assert [failure.verb for failure in found.failures] == ["measure"]
    assert "5 tokens" in found.failures[0].why
    assert found.models[0].alignment_redrawn is None


def test_a_finer_dtype_is_left_out_where_its_weights_have_no_room():
    def ran(room):
        plans = plan_random(["pythia-6.9b"], "", ["bfloat16", "float32"], seeds=2, room=room)
        return Counter((plan.verb, plan.options.get("dtype")) for plan in plans)

    everything = {
        ("read", None): 1, ("measure", "bfloat16"): 4, ("trace", "bfloat16"): 2, ("measure", "float32"): 2,
    }  # fmt: skip
    assert ran(None) == ran(4 * 6_857_302_016) == everything
    assert ran(4 * 6_857_302_016 - 1) == {k: n for k, n in everything.items() if k[1] != "float32"}


def test_a_trained_model_is_set_against_its_twins():
    found = conclude([result_of(run_task(p)[0]) for p in plan_trained({"demo:minilm": {}}, device="cpu")], name="one")
    (row,) = found.trained
    # Three gains of 4.8e-33, 6.0e-33 and 1.5e-9 make three dead directions where a twin has one, and its depth.
    assert (row.dead, row.algebraic_dead, row.learned_dead, row.dead_twin) == (3, 3, 0, 1)
    assert row.gain_decades == pytest.approx(61.9, abs=0.1)
    assert row.deepening == pytest.approx(row.gain_decades, abs=1.0)
    assert {c.name: c.verdict for c in found.claims}["further"] == "confirmed"


def test_bad_requests_are_refused_before_anything_runs(tmp_path):
    for options, message in (
        ({"scale": "huge"}, "scale"),
        ({"scale": "small", "models": ["gpt2"]}, "not in the table"),
        ({"scale": "small", "seeds": 0}, "seeds"),
        ({"scale": "small", "dtypes": ["int8"]}, "dtype"),
        ({"scale": "full", "device": "cuda:99"}, "device"),
    ):
        with pytest.raises(UsageError, match=message):
            reproduce(store=tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_the_command_writes_the_record_and_fails_where_a_task_does(small, tmp_path, capsys):
    folder, found = small
    arguments = ["reproduce", "--scale", "small", "--seeds", "1", "--store", str(folder / "store"), "--quiet"]
    assert main([*arguments, "-o", str(tmp_path / "r.json")]) == 0
    shown = capsys.readouterr().out
    assert "9/9 in float32" in shown
    assert "pythia-160m" in shown
    assert load_record(tmp_path / "r.json") == found
    short = ["reproduce", "--scale", "small", "--seeds", "1", "--model", "pythia-160m", "--json", "--store"]
    assert main([*short, str(folder / "store"), "--trained", "no-such-model"]) == 1
    failures = json.loads(capsys.readouterr().out)["failures"]
    assert {failure["model"] for failure in failures} == {"no-such-model"}
    assert deadreckon.reproduce is reproduce
