"""Several processes measure what one would: real ranks over gloo, what they refuse, and what happens when one dies.

Ranks are forked, which spares each of them the import of torch; one test goes through ``torchrun`` itself.
"""

import contextlib
import io
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
import traceback

import pytest
import torch
import torch.distributed as dist

from deadreckon.cli import main as cli
from deadreckon.errors import DeadreckonError, InputError, UnreachableError, UsageError
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.distributed import add_up, fingerprint_of_inputs, fingerprint_of_model, launched, together
from deadreckon.forward.statistics import NormStatistics
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_sizes import LAYERS, WIDTH
from deadreckon.kernel.norm import LAYERNORM, Norm
from deadreckon.verbs.measure import measure

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not dist.is_gloo_available(), reason="needs fork and gloo")

U = torch.finfo(torch.float64).eps / 2
PATIENCE = 30  # seconds until ranks count as hanging; healthy ones here take one or two


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def ranks(count, work):
    """What `work(rank)` returned or raised in each of `count` processes that torchrun could have started.

    Returns:
        (exit code, result) for every rank; the result of one that ended without a word is None.
    """
    port, context = free_port(), multiprocessing.get_context("fork")

    def one(rank, sender):
        torch.set_num_threads(1)  # threads do not survive a fork
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)})
        os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})
        try:
            sender.send(work(rank))
        except DeadreckonError as error:
            sender.send(error)
        except BaseException:
            sender.send(traceback.format_exc())
            raise

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [context.Process(target=one, args=(i, sender)) for i, (_, sender) in enumerate(pipes)]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    deadline, results = time.monotonic() + PATIENCE, []
    try:
        for receiver, _ in pipes:
            try:
                hangs = not receiver.poll(max(0.0, deadline - time.monotonic()))
                results.append("hangs" if hangs else receiver.recv())
            except EOFError:
                results.append(None)
        for process in processes:
            process.join(max(1.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    return [(process.exitcode, result) for process, result in zip(processes, results, strict=True)]


def command(*arguments):
    """Exit code, stdout and stderr of the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def neox():
    model = tiny_model("gpt_neox")
    redraw_affine(model, "lognormal:0.5", 0)
    return model.double()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directories of two models that differ in one number."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    model = tiny_model("gpt_neox")
    model.save_pretrained(folders[0])
    with torch.no_grad():
        model.layers[1].mlp.dense_h_to_4h.bias[0] += 1e-3
    model.save_pretrained(folders[1])
    return folders


def batches(rows=(19, 21), length=16):
    generator = torch.Generator().manual_seed(0)
    found = [{"input_ids": torch.randint(10, 120, (count, length), generator=generator)} for count in rows]
    for batch in found:
        kept = torch.randint(1, length + 1, (len(batch["input_ids"]), 1), generator=generator)
        batch["attention_mask"] = (torch.arange(length) < kept).long()
    return found


def assert_same(found, expected):
    """Figures equal to rounding.

    A covariance differs by at most (N + m) u of its largest diagonal entry, an entry (N additions, m for the forward of
    `LAYERS` blocks in other batches), hence an eigenvalue by d times that, a mean of d of them by no more. An effective
    rank hears of the root of that, the singular value of a direction that is dead.
    """
    count, size = expected["tokens"], expected["hidden_size"]
    scale = size * (count + 16 * LAYERS * WIDTH) * U * expected["lambda_max"]
    for name in ("tokens", "distinct_inputs", "kernel_dim", "dead_counts", "algebraic_dead", "learned_dead", "tau"):
        assert found[name] == expected[name], name
    for name in ("lambda_2", "lambda_mean", "lambda_max"):
        assert abs(found[name] - expected[name]) <= scale, name
    relative = scale / expected["lambda_max"]
    assert found["effective_rank"] == pytest.approx(expected["effective_rank"], rel=relative**0.5)
    for name in ("participation_ratio", "stable_rank"):
        assert found[name] == pytest.approx(expected[name], rel=4 * size * relative), name
    # Where there is nothing but rounding, it stays nothing but rounding.
    for name in ("lambda_dead", "lambda_dead_float64", "lambda_dead_floor"):
        assert abs(found[name] - expected[name]) <= size * (16 * LAYERS * U) ** 2 * expected["lambda_max"], name
    assert found["protocol"]["status"] == expected["protocol"]["status"] == "ok"
    for mine, theirs in zip(found.get("twins", ()), expected.get("twins", ()), strict=True):
        assert mine["seed"] == theirs["seed"]
        assert_same(mine, theirs)


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_ranks_measures_what_one_process_does(neox, count):
    options = {"tokens": 299, "twin": 1, "affine": "lognormal:0.5"}
    expected = measure(neox, batches=batches(), **options).to_dict()
    assert (expected["tokens"], len(expected["twins"])) == (299, 1)
    found = ranks(count, lambda rank: measure(neox, batches=batches(), distribute=True, **options).to_dict())
    assert [code for code, _ in found] == [0] * count
    for _, figures in found:
        assert_same(figures, expected)
    # Every process concludes from the same sums: bit by bit the same.
    for _, figures in found[1:]:
        assert {**figures, "seconds": 0} == {**found[0][1], "seconds": 0}


def test_a_rank_without_rows_changes_nothing():
    """Three rows for four ranks: what comes out has a dtype and ids that the idle rank has never seen."""
    model = tiny_model("gpt_neox").bfloat16()
    few = [{"input_ids": batches((3,), 40)[0]["input_ids"], "attention_mask": torch.ones(3, 40, dtype=torch.long)}]
    expected = measure(model, batches=few).to_dict()
    found = ranks(4, lambda rank: measure(model, batches=few, distribute=True).to_dict())
    for code, figures in found:
        assert code == 0
        assert (figures["tokens"], figures["distinct_inputs"]) == (120, expected["distinct_inputs"])
        assert figures["protocol"]["status"] == "ok"
        assert figures["protocol"]["norm_tolerance"] == expected["protocol"]["norm_tolerance"]
        assert figures["schur_ratio"] is not None


def test_statistics_add_up_also_where_means_are_far_apart():
    """Rank r sees tokens about a mean of its own, 1e6 apart: the sum is that of one process over all tokens."""
    norm = Norm("n", LAYERNORM, torch.ones(8, dtype=torch.float64).numpy())
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 50, 8, generator=generator, dtype=torch.float64)
    tokens += torch.tensor([0.0, 1e6, -3e6])[:, None, None]

    def of(parts):
        statistics = NormStatistics(norm, torch.device("cpu"))
        for part in parts:
            statistics.update(part, part)
        return statistics

    def work(rank):
        with together(torch.device("cpu")) as share:
            statistics = of(tokens[share.index : share.index + 1])
            add_up(statistics)
        return statistics.count, statistics.native.scatter().numpy(), statistics.error.squares.numpy()

    whole = of(tokens)
    for code, (count, scatter, squares) in ranks(3, work):
        assert (code, count) == (0, 150)
        # N additions, each an error of u times the largest sum.
        bound = 4 * 150 * U * float(whole.native.scatter().diagonal().max())
        assert (torch.from_numpy(scatter) - whole.native.scatter()).abs().max() <= bound
        assert (torch.from_numpy(squares) - whole.error.squares).abs().max() <= bound


# What is refused


def refused(count, work):
    """The message with which every rank ended, exit code 2, or 3 where it only heard that another one did."""
    found = ranks(count, work)
    assert [code for code, _ in found] == [0] * count
    for _, (code, out, err) in found:
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) == 1
    return found[0][1][2]


@pytest.mark.parametrize("differing", ["model", "seed", "tokens", "norm", "twin", "affine", "dtype"])
def test_ranks_that_would_measure_different_things_are_refused_at_the_start(saved, differing):
    def work(rank):
        second = rank == 1
        options = {"tokens": 520}
        if differing in {"seed", "tokens", "twin"}:
            other = {"seed": 3, "tokens": 600, "twin": 1}[differing]
            options[differing] = other if second else options.get(differing, 0)
        if differing == "norm":
            options["norm"] = f"layers.{1 + second}.input_layernorm"
        if differing == "affine":
            options |= {"twin": 1, "affine": f"lognormal:{0.5 + second}"}
        if differing == "dtype":
            options["dtype"] = "float64" if second else "float32"
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return command("measure", saved[second and differing == "model"], *words, "--json", "--quiet")

    message = refused(2, work)
    assert "rank 1 differs" in message
    assert ("the model" if differing in {"model", "dtype"} else "inputs") in message


def test_ranks_with_different_batches_are_refused(neox):
    def work(rank):
        found = batches()
        found[0]["input_ids"][7, 3] += rank == 2
        return measure(neox, batches=found, distribute=True)

    for _, error in ranks(3, work):
        assert isinstance(error, InputError)
        assert re.match("rank 2 differs from rank 0 in the inputs", str(error))


def test_fingerprints_see_what_matters(neox):
    from deadreckon.forward.calibration import given
    from deadreckon.forward.random_inputs import random_inputs

    other = tiny_model("gpt_neox").double()
    other.load_state_dict(neox.state_dict())
    assert fingerprint_of_model(other) == fingerprint_of_model(neox)
    assert fingerprint_of_model(other.float()) != fingerprint_of_model(neox)
    inputs = [random_inputs(neox, seed=seed, batch_size=2) for seed in (0, 1)]
    assert len({fingerprint_of_inputs(drawn, tokens) for drawn in inputs for tokens in (8, 9)}) == 4
    assert fingerprint_of_inputs(given([]), None) == fingerprint_of_inputs(given([]), None)


def test_svd_keeps_tokens_and_is_refused(neox):
    for _, error in ranks(2, lambda rank: measure(neox, batches=batches(), distribute=True, solver="svd")):
        assert isinstance(error, UsageError)
        assert "svd" in str(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("words", "says"), [(["--device", "cuda"], "cuda"), (["--device", "nonsense"], "nonsense"), (["--dtype", "x"], "x")]
)
def test_bad_options_are_refused_by_every_rank(saved, words, says):
    assert says in refused(2, lambda rank: command("measure", saved[0], *words, "--quiet"))


def test_a_model_on_disk_is_shared_too(saved):
    def work(rank):
        return command("measure", saved[0], "--tokens", 520, "--max-memory", "cpu=50KB", "--json", "--quiet")

    found = [json.loads(out) for _, (code, out, _) in ranks(2, work) if out]
    assert len(found) == 1
    expected = measure(saved[0], tokens=520)
    assert found[0]["tokens"] == 520
    assert found[0]["lambda_max"] == pytest.approx(expected.lambda_max, rel=1e-5)  # float32 in other batches


# What dies


def test_a_rank_that_dies_ends_the_others_with_a_clear_error(saved, monkeypatch):
    """Rank 1 ends in the middle of its second forward: the others say so, soon."""
    started = time.monotonic()
    monkeypatch.setattr("deadreckon.forward.collect.run", dying(1, after=2))
    found = ranks(3, lambda rank: command("measure", saved[0], "--tokens", 8000, "--batch-size", 2, "--quiet"))
    assert time.monotonic() - started < PATIENCE
    assert found[1] == (17, None)
    for exitcode, (code, out, err) in (found[0], found[2]):
        assert (exitcode, code, out) == (0, 3, "")
        assert "another process of this measurement ended" in err
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) == 1


def dying(rank, after):
    """A forward pass in whose middle one rank ends without a word."""
    from deadreckon.forward.anatomy import run

    calls = []

    def mortal(model, batch):
        def hook(*_):
            calls.append(1)
            if len(calls) == after:
                os._exit(17)

        if os.environ.get("RANK") == str(rank) and not calls:
            model.layers[2].register_forward_hook(hook)
        return run(model, batch)

    return mortal


def test_a_rank_whose_model_diverges_is_named_by_itself_and_ends_the_others(neox):
    def work(rank):
        found = batches()
        model = tiny_model("gpt_neox")
        model.layers[3].attention.dense.register_forward_hook(spoil)
        return measure(model, batches=found, distribute=True, batch_size=4)

    def spoil(module, args, output):
        return output * float("nan") if os.environ["RANK"] == "1" else output

    (_, first), (_, second) = ranks(2, work)
    assert isinstance(second, InputError)
    assert "layers.3.attention.dense" in str(second)
    assert isinstance(first, UnreachableError)


def test_a_peer_that_never_comes_is_not_waited_for_longer_than_asked(neox, monkeypatch):
    import datetime

    monkeypatch.setattr("deadreckon.forward.distributed._PATIENCE", datetime.timedelta(seconds=2))

    def work(rank):
        return os._exit(1) if rank else measure(neox, batches=batches(), distribute=True)

    (_, error), (code, _) = ranks(2, work)
    assert code == 1
    assert isinstance(error, UnreachableError)
    assert "cannot be reached" in str(error)


def test_own_errors_and_groups_pass_through():
    """A group that exists is used and left; errors of the work itself are not taken for those of communication."""

    def work(rank):
        dist.init_process_group("gloo")
        for error in (RuntimeError("shapes differ"), ValueError("no"), InputError("the store of /gloo/connection")):
            with pytest.raises(type(error), match=str(error)), together(torch.device("cpu")):
                raise error
        return dist.is_initialized()

    assert [result for _, result in ranks(2, work)] == [True, True]


def test_one_process_is_not_launched(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launched()


# The real thing


def torchrun(script, *arguments):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launch, *script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_under_torchrun_one_document_is_printed(saved):
    done = torchrun(["-m", "deadreckon"], "measure", saved[0], "--tokens", 520, "--twin", 1, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = measure(saved[0], tokens=520, twin=1)
    assert (found["tokens"], found["twins"][0]["tokens"]) == (520, 520)
    assert found["twins"][0]["lambda_max"] == pytest.approx(expected.twins[0].lambda_max, rel=1e-5)


@pytest.mark.slow
def test_under_torchrun_a_dying_rank_ends_the_job(saved, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys, torch\n"
        "from deadreckon.cli.main import main\n"
        "def hook(module, args, output):\n"
        "    if os.environ['RANK'] == '1': os._exit(17)\n"
        "torch.nn.modules.module.register_module_forward_hook(hook)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    started = time.monotonic()
    done = torchrun([str(script)], "measure", saved[0], "--tokens", 520, "--json")
    assert time.monotonic() - started < 60
    assert done.returncode != 0
    assert done.stdout == ""
    assert "exitcode: 17" in re.sub(r"exitcode\s*:\s*", "exitcode: ", done.stderr)
