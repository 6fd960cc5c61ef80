"""What other tools cost and tell about dead directions, beside `read` and `measure`: one model, one machine, one run.

    python -m venv .venv-peers
    .venv-peers/bin/python -m pip install -r benchmarks/requirements-peers.txt
    python benchmarks/peers.py

Each row is a fresh process that does its whole job on trained MiniLM: wall time, and peak memory above an interpreter
that has only imported torch. Rows that run the model see the same 3072 tokens. Without the peers' environment their
rows say what is missing. What a row's own work costs once model and tokens are in memory stands beside its wall time.
Every time is the least of its repetitions: what else the machine does only adds. How much else it did is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

RUNS, REPEATS = 3, 7
TOKENS, LENGTH, BATCH = 3072, 512, 8  # what `deadreckon measure` takes by itself at 384 dimensions
TAU = 1e-6
CHAINS, DRAWS, SEQUENCES, INIT_BATCHES = 4, 200, 32, 32  # devinterp's defaults
TIMED_DRAWS = 10
INSTALL = ".venv-peers/bin/python -m pip install -r benchmarks/requirements-peers.txt"
ROWS = {
    "deadreckon read": "read",
    "deadreckon measure": "measure",
    "keep activations, numpy.linalg.svd": "numpy_svd",
    "keep activations, torch.linalg.svd": "torch_svd",
    "devinterp LLC": "devinterp",
    "WeightWatcher": "weightwatcher",
}
PEERS = {"devinterp", "weightwatcher"}


# The rows' own work, each in a process of its own. The peers' interpreter need not have deadreckon.


def load(path: str, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The model, and the batches that `deadreckon measure` makes of the English text in CPython's help topics."""
    from pydoc_data import topics

    import torch
    from transformers import AutoModel, AutoTokenizer

    text = "\n".join(topics.topics.values())[: 20 * TOKENS]
    encoded = AutoTokenizer.from_pretrained(path)(
        text, truncation=True, max_length=LENGTH, return_overflowing_tokens=True, return_attention_mask=False
    )["input_ids"]
    ids = torch.tensor(encoded[: TOKENS // LENGTH])
    batches = [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids.split(BATCH)]
    return AutoModel.from_pretrained(path, **options).eval(), batches


def forward(model: Any, batches: list[dict[str, Any]]) -> None:
    import torch

    with torch.inference_mode():
        for batch in batches:
            model(**batch)


def singular_values(model: Any, batches: list[dict[str, Any]], library: str) -> Any:
    """The way everybody writes first: keep what the final norm puts out, centre it, decompose it."""
    import numpy as np
    import torch

    kept: list[torch.Tensor] = []
    hook = model.encoder.layer[-1].output.LayerNorm.register_forward_hook(lambda _, __, out: kept.append(out))
    forward(model, batches)
    hook.remove()
    outputs = torch.cat([out.flatten(0, 1) for out in kept])
    if library == "torch":
        return torch.linalg.svd(outputs - outputs.mean(0), full_matrices=False)[1].numpy()
    host = outputs.cpu().numpy()
    return np.linalg.svd(host - host.mean(0), full_matrices=False)[1]


def svd_row(path: str, library: str) -> dict[str, Any]:
    model, batches = load(path)
    started = time.perf_counter()
    values = singular_values(model, batches, library).astype(float)
    seconds = time.perf_counter() - started
    variances = values**2 / (TOKENS - 1)
    mean = float(variances.mean())
    found = {
        "below_tau": int((variances <= TAU * mean).sum()),
        "lambda_mean": mean,
        "smallest_over_mean": float(variances[-1] / mean),
    }
    says = (
        f"{found['below_tau']} directions below {TAU:.0e} of the mean variance on these tokens, the least at "
        f"{found['smallest_over_mean']:.0e} of it, with no floor beside it; not why, nor whether other tokens agree"
    )
    return {"work_seconds": seconds, "found": found, "says": says}


def devinterp_row(path: str, chains: int, draws: int) -> dict[str, Any]:
    """devinterp's estimate under MiniLM's training objective: which second half belongs to which first half.

    The model has no head, so next-token loss does not exist for it. A draw passes the same tokens once, forward and
    backward, in sequences as short as devinterp's default of 32 a batch makes them. No observables: the cheapest use.
    """
    import torch
    from datasets import Dataset
    from devinterp.slt.llc import llc
    from devinterp.utils import default_nbeta

    model, batches = load(path, add_pooling_layer=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ids = torch.cat([batch["input_ids"] for batch in batches]).reshape(SEQUENCES, -1)
    data = Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
    calls: list[float] = []

    def loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
        calls.append(time.perf_counter())
        states = model(input_ids=ids.reshape(2 * len(ids), -1)).last_hidden_state
        halves = torch.nn.functional.normalize(states.mean(1), dim=-1)
        scores = 20 * halves[0::2] @ halves[1::2].T
        each = torch.nn.functional.cross_entropy(scores, torch.arange(len(ids), device=ids.device), reduction="none")
        return each[:, None].expand(-1, ids.shape[1] - 1)

    def least(times: list[float]) -> float:
        return min(later - earlier for earlier, later in pairwise(times))

    started = time.perf_counter()
    n_beta = float(default_nbeta(SEQUENCES))
    result = llc(model, data, {}, lr=1e-7, n_beta=n_beta, loss_fn=loss, num_chains=chains, num_draws=draws)
    seconds = time.perf_counter() - started
    if len(calls) != chains * (INIT_BATCHES + draws) or not bool(result["loss_trace"].notnull().all()):
        raise RuntimeError(f"{len(calls)} passes, perhaps not all finite: devinterp's chains did not finish")
    found = {
        "chains": chains,
        "draws": draws,
        "sequences_a_draw": SEQUENCES,
        "tokens_a_draw": ids.numel(),
        "llc": float(result["llc_mean"]),
        "init_loss": float(result["init_loss"]),
        "seconds_a_draw": least(calls[-draws:]),
        "mean_seconds_a_draw": (calls[-1] - calls[-draws]) / (draws - 1),
        "seconds_a_pass_before_the_draws": least(calls[:INIT_BATCHES]),
    }
    says = "one number for the whole model and one loss, the LLC; no direction, no count, nothing of a norm"
    answer = {"work_seconds": seconds, "found": found, "says": says}
    if (chains, draws) != (CHAINS, DRAWS):
        chain = INIT_BATCHES * found["seconds_a_pass_before_the_draws"] + DRAWS * found["seconds_a_draw"]
        answer["extrapolated_work_seconds"] = CHAINS * chain
    return answer


def weightwatcher_row(path: str) -> dict[str, Any]:
    from transformers import AutoModel
    from weightwatcher import WeightWatcher

    model = AutoModel.from_pretrained(path)
    started = time.perf_counter()
    watcher = WeightWatcher(model=model)
    details = watcher.analyze()
    summary = watcher.get_summary(details)
    seconds = time.perf_counter() - started
    found = {
        "matrices": len(details),
        "norms": int(details["longname"].str.contains("norm", case=False).sum()),
        "alpha": float(summary["alpha"]),
        "matrices_with_weak_rank_loss": int((details["weak_rank_loss"] > 0).sum()),
        "final_norm_dead_directions": None,
    }
    says = (
        f"alpha of {found['matrices']} matrices (mean {found['alpha']:.2f}), weak rank loss in "
        f"{found['matrices_with_weak_rank_loss']} of them; {found['norms'] or 'none'} of them a norm: no dead direction"
    )
    return {"work_seconds": seconds, "found": found, "says": says}


def warm_row(path: str) -> dict[str, Any]:
    """Model and tokens in memory, everything run once before: the least of interleaved repetitions in one process."""
    import deadreckon

    model, batches = load(path)
    works: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(model, batches),
        "measure": lambda: deadreckon.measure(model, batches=batches),
        "numpy_svd": lambda: singular_values(model, batches, "numpy"),
        "torch_svd": lambda: singular_values(model, batches, "torch"),
        "read": lambda: deadreckon.read(path),
    }
    samples: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(1 + REPEATS):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            samples[name].append(time.perf_counter() - started)
    return {"seconds": {name: min(times[1:]) for name, times in samples.items()}}


def work(row: str, path: str, chains: int, draws: int) -> dict[str, Any]:
    """One row's work in this process; names the package that is missing instead of failing."""
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "idle": lambda: {"torch": str(import_module("torch").__version__)},
        "warm": lambda: warm_row(path),
        "numpy_svd": lambda: svd_row(path, "numpy"),
        "torch_svd": lambda: svd_row(path, "torch"),
        "devinterp": lambda: devinterp_row(path, chains, draws),
        "weightwatcher": lambda: weightwatcher_row(path),
    }
    if row in PEERS and find_spec(row) is None:
        return {"missing": row}
    try:
        return rows[row]()
    except ModuleNotFoundError as error:
        return {"missing": error.name}


# The driver.


def process(command: list[str]) -> dict[str, Any]:
    """A fresh process: its wall seconds, peak MB and last line of output; or how it failed."""
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    started = time.perf_counter()
    done = subprocess.run(["/usr/bin/env", "time", "-f", "%M", *command], capture_output=True, text=True, env=quiet)
    seconds = time.perf_counter() - started
    *errors, peak = done.stderr.strip().splitlines()
    if done.returncode:
        return {"failed": (errors[-2:] or ["no message"])[0]}
    said = "\n" + done.stdout
    answer = json.loads(said[said.rindex("\n{") :])
    if "missing" in answer:
        return {"missing": f"{answer['missing']} is not installed: {INSTALL}"}
    return {"seconds": seconds, "peak_mb": int(peak) / 1024, "answer": answer}


def told(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    """A command's JSON, reduced to what it says about dead directions."""
    if name == "read":
        found = {key: answer[key] for key in ("dead_count", "kernel_dim", "tau", "bytes_read")}
        says = f"{found['dead_count']} dead directions and their vectors from the gain, for any input; nothing was run"
        return {"found": found, "says": says}
    keys = ("predicted_dead", "dead_counts", "algebraic_dead", "learned_dead", "largest_principal_angle", "lambda_mean")
    found = {key: answer[key] for key in (*keys, "tokens", "lambda_dead_float64", "lambda_dead_at_floor")}
    found["protocol"] = answer["protocol"]["status"]
    says = (
        f"{answer['predicted_dead']} predicted from the gain, {answer['dead_counts']['1e-06']} found, the two "
        f"within {answer['largest_principal_angle']:.0e} rad; {answer['learned_dead']} learned; norm verified: "
        f"{found['protocol']}"
    )
    return {"found": found, "says": says}


def other_seconds() -> float:
    """CPU seconds that everything but this command and its finished children has used so far, on Linux."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def versions(python: str) -> dict[str, str]:
    """Versions of what a row's interpreter uses."""
    code = (
        "import importlib.metadata as m, json, platform; w = {'numpy', 'torch', 'transformers', 'devinterp', "
        "'weightwatcher'}; print(json.dumps({'python': platform.python_version()} | "
        "{d.name.lower(): d.version for d in m.distributions() if d.name.lower() in w}))"
    )
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def measure_rows(python: str, path: Path, chains: int, draws: int) -> dict[str, Any]:
    """Every row, in turn and again, so that all of them meet the same machine; the slow sampler once."""
    own = [sys.executable, __file__, "--model", str(path), "--row"]
    peer = [python, __file__, "--model", str(path), "--chains", str(chains), "--draws", str(draws), "--row"]
    commands = {name: [*(peer if name in PEERS else own), name] for name in ROWS.values()}
    for verb in ("read", "measure"):
        commands[verb] = [sys.executable, "-m", "deadreckon", verb, "demo:minilm", "--json"]
    commands |= {"idle": [*own, "idle"], "idle of the peers": [*peer, "idle"], "warm": [*own, "warm"]}
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for turn in range(RUNS):
        for name, command in commands.items():
            if turn == 0 or (name not in {"devinterp", "warm"} and "seconds" in samples[name][0]):
                print(f"{turn + 1}/{RUNS} {name}", file=sys.stderr)
                samples[name].append(process(command))
                if name not in PEERS | {"idle of the peers"} and "seconds" not in samples[name][-1]:
                    sys.exit(f"{name}: {samples[name][-1]}")
    return samples


def conclude(samples: dict[str, Any]) -> dict[str, Any]:
    """The least of each row's runs, memory above the idle interpreter, ratios and what each row told."""

    def least(name: str, key: str) -> float:
        return min(sample[key] for sample in samples[name])

    warm = samples["warm"][0]["answer"]["seconds"]
    whole, own = {name: least(name, "seconds") for name in ("read", "measure")}, warm["measure"]
    figures: dict[str, Any] = {}
    for label, name in ROWS.items():
        first = samples[name][0]
        if "seconds" not in first:
            figures[label] = first
            continue
        row = told(name, first["answer"]) if name in whole else dict(first["answer"])
        answers = [sample["answer"] for sample in samples[name]]
        row["runs"] = len(answers)
        row["seconds"] = seconds = least(name, "seconds")
        row["work_seconds"] = min(a["work_seconds"] for a in answers) if name in PEERS else warm[name]
        row["peak_mb"] = least(name, "peak_mb")
        row["peak_mb_above_idle"] = row["peak_mb"] - least("idle of the peers" if name in PEERS else "idle", "peak_mb")
        work_seconds = row.get("extrapolated_work_seconds", row["work_seconds"])
        if "extrapolated_work_seconds" in row:
            row["extrapolated_seconds"] = seconds = seconds - row["work_seconds"] + work_seconds
        row["ratios"] = {verb: seconds / base for verb, base in whole.items()} | {"work": work_seconds / own}
        figures[label] = row
    return figures


def show(figures: dict[str, Any], warm: dict[str, float]) -> None:
    print(f"{'':36s}{'process':>10s}{'work':>10s}{'MB above':>10s}{'times':>10s}{'times':>10s}{'its work':>10s}")
    print(f"{'':36s}{'s':>10s}{'s':>10s}{'idle':>10s}{'read':>10s}{'measure':>10s}{'/measure':>10s}")
    for label, row in figures.items():
        if "seconds" not in row:
            print(f"{label:36s}{row.get('missing') or 'failed: ' + row['failed']}")
            continue
        seconds = row.get("extrapolated_seconds", row["seconds"])
        own = row.get("extrapolated_work_seconds", row["work_seconds"])
        ratios = "".join(f"{ratio:10.2f}" for ratio in row["ratios"].values())
        print(f"{label:36s}{seconds:10.2f}{own:10.3f}{row['peak_mb_above_idle']:10.0f}{ratios}")
    for label, row in figures.items():
        if "extrapolated_seconds" in row:
            found = row["found"]
            print(
                f"{label} is extrapolated to its default {CHAINS} chains x {DRAWS} draws from {found['chains']} x "
                f"{found['draws']} timed: {row['seconds']:.1f} s in all, {found['seconds_a_draw']:.3f} s the fastest"
            )
    over = warm["measure"] / warm["forward"]
    print(f"a bare forward over the same tokens takes {warm['forward']:.3f} s, measure {over:.2f} times that")
    for label, row in figures.items():
        if "says" in row:
            print(f"{label}: {row['says']}")


def main() -> None:
    environment = Path(__file__).parent.parent / ".venv-peers/bin/python"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", help="interpreter with the peers (default: .venv-peers if there, else this)")
    parser.add_argument("--chains", type=int, default=1, help=f"devinterp's chains to run (its default: {CHAINS})")
    parser.add_argument("--draws", type=int, default=TIMED_DRAWS, help=f"draws a chain (its default: {DRAWS})")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print("\n" + json.dumps(work(options.row, options.model, options.chains, options.draws)))
        return
    if options.chains < 1 or options.draws < 2:
        parser.error("at least 1 chain of 2 draws")

    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            sys.exit(f"{package} is not installed: pip install 'deadreckon[measure,demo]'")
    python = options.peers_python or (str(environment) if environment.exists() else sys.executable)
    if shutil.which(python) is None:
        parser.error(f"--peers-python {python}: no such interpreter")

    import common

    from deadreckon.checkpoint.demo import demo_path
    from deadreckon.errors import DeadreckonError

    try:
        path = demo_path("minilm")
    except DeadreckonError as error:
        sys.exit(str(error))
    started, others = time.perf_counter(), other_seconds()
    samples = measure_rows(python, path, options.chains, options.draws)
    busy = (other_seconds() - others) / (time.perf_counter() - started)
    figures = conclude(samples)
    warm = samples["warm"][0]["answer"]["seconds"]
    means = [figures[label]["found"]["lambda_mean"] for label, name in ROWS.items() if name in {"measure", "numpy_svd"}]
    common.write(
        "peers",
        {
            "model": "demo:minilm",
            "tokens": TOKENS,
            "same_tokens": {"relative_difference_of_mean_variance": abs(means[0] / means[1] - 1)},
            "least_of": RUNS,
            "cores_busy_with_other_things": busy,
            "peers_libraries": versions(python),
            "idle_mb": min(sample["peak_mb"] for sample in samples["idle"]),
            "warm_seconds": {**warm, "least_of": REPEATS, "measure_over_forward": warm["measure"] / warm["forward"]},
            "rows": figures,
        },
    )
    show(figures, warm)
    print(f"Meanwhile {busy:.2f} of {os.cpu_count()} cores were busy with other things.")


if __name__ == "__main__":
    main()
