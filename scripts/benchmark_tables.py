"""The tables of the README that come from recorded benchmarks, made from ``benchmarks/results/*.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def table(name: str) -> str:
    """The Markdown table of that name.

    Args:
        name: one of `TABLES`.

    Returns:
        The table.
    """
    return "\n".join(f"| {' | '.join(row)} |" for row in TABLES[name]())


def _engine() -> list[list[str]]:
    figures = _figures("engine_h200_pythia-6.9b")
    rows = [["tokens", "16,384", "65,536"], ["---", "---", "---"]]
    for label, key in (
        ("bare forward, bfloat16", "forward_s"),
        ("`measure`, finding the norm included, `--solver bottom`", "measure_bottom_s"),
        ("`measure`, whole spectra (`eigh`)", "measure_eigh_s"),
        ("Grams of all 33 nodes of the stream", "stream_collect_over_forward"),
        ("the same with σ_min, σ_max and log det of each", "stream_s"),
    ):
        cells = []
        for tokens in ("16384", "65536"):
            part = figures[tokens]
            seconds = part[key] if key.endswith("_s") else part[key] * part["forward_s"]
            cells.append(f"{seconds:.2f} s ({seconds / part['forward_s']:.2f}×)")
        rows.append([label, *cells])
    return rows


def _report() -> list[list[str]]:
    figures = _figures("report")
    heads = ["report", "charts", "size", "first paint", "first chart", "last chart", "to write it"]
    rows = [heads, ["---"] * len(heads)]
    for name, key in (
        ("14 models, each measured twice and traced", "fourteen_models"),
        ("one measurement", "one_measurement"),
    ):
        row = figures[key]
        times = [f"{row[f'seconds_to_{what}']:.1f} s" for what in ("first_paint", "first_chart", "last_chart", "write")]
        rows.append([name, str(row["charts"]), f"{row['bytes'] / 1e6:.2f} MB", *times])
    return rows


def _fisher() -> list[list[str]]:
    heads = ["model", "dtype", "sites", "dead", "with remedy, at most", "without, at least", "dead without remedy"]
    rows = [[*heads, "naive/(c² E Var) off 1 by", "control"], ["---"] * (len(heads) + 2)]
    for row in [*_figures("fisher_shapes_h200"), *_figures("fisher_trained")]:
        kernels, controls = row["with_kernel"], [f"{ratio:.2f}" for ratio in row["control_ratios"]]
        dead = [f"{row['dead_as_predicted']} of {kernels}", str(row["naive_dead_too"])] if kernels else ["–", "–"]
        keys = ("largest_ratio", "smallest_naive_ratio", "largest_deviation_of_naive")
        small = ["–" if row[key] is None else f"{row[key]:.0e}" for key in keys]
        sites = str(row["sites"]) + (f" ({row['virtual']} virtual)" if row["virtual"] else "")
        name = [row["model"], row["dtype"], sites]
        rows.append([*name, dead[0], small[0], small[1], dead[1], small[2], ", ".join(controls) or "–"])
    return rows


def _fisher_cost() -> list[list[str]]:
    (row,) = _figures("fisher_cost_h200")
    seconds = [row["forward_seconds"], row["fisher_seconds"], row["fisher_without_finite_steps_seconds"]]
    names = ["one bare forward pass, logits included", "`fisher`", "`fisher --no-gauge`"]
    rows = [["", "seconds", "ratio"], ["---"] * 3]
    return rows + [[n, f"{s:.2f}", f"{s / seconds[0]:.2f}"] for n, s in zip(names, seconds, strict=True)]


def _host() -> list[list[str]]:
    figures = _figures("host")
    rows = [["Pythia-160M shape, 13 nodes, float32, two cores", "tokens", "seconds", "memory above the model"]]
    rows.append(["---", "---", "---", "---"])
    for label, key in (
        ("bare forward", "forward"),
        ("deadreckon", "ours"),
        ("deadreckon, eight times the tokens", "ours, long"),
        ("keep the activations, `numpy.linalg.svd`", "naive"),
    ):
        row = figures[key]
        rows.append([label, f"{row['tokens']:,}", f"{row['seconds']:.1f}", f"{row['peak_mb']:.0f} MB"])
    return rows


def _hub() -> list[list[str]]:
    figures = _figures("hub")
    download = figures["snapshot_download_1_gb"]
    rows = [["model on the hub", "way", "requests after the index", "bytes after it", "seconds, all in all"]]
    rows.append(["---"] * 5)
    for name, model in figures["models"].items():
        for way, key in (("`read`", "read"), ("`get_safetensors_metadata`", "get_safetensors_metadata")):
            after = model[key]["after_index"]
            what = f"{name}: {model['what']}, {model['shards']} shards"
            rows.append([what, way, str(after["requests"]), f"{after['bytes']:,}", f"{model[key]['seconds']:.2f}"])
        size, seconds = model["bytes_of_weights"], download["extrapolated_seconds"][name]
        rows.append([name, "`snapshot_download`, extrapolated", "", f"{size:,}", f"{seconds:.0f}"])
    return rows


def _peers() -> list[list[str]]:
    figures = _figures("peers")
    measure = figures["rows"]["deadreckon measure"]["seconds"]
    rows = [["MiniLM, 3,072 tokens, two cores", "whole process", "over `measure`", "what it tells"], ["---"] * 4]
    for name, row in figures["rows"].items():
        ratio = row["ratios"]["measure"]
        extrapolated = ", extrapolated" if name == "devinterp LLC" else ""
        rows.append([name, f"{ratio * measure:,.1f} s{extrapolated}", f"{ratio:.3g}×", row["says"]])
    return rows


def _sweep() -> list[list[str]]:
    figures = _figures("sweep")
    killed, overhead = figures["killed"], figures["overhead_milliseconds_a_task"]
    equal = {True: "the same", False: "another"}
    times = sum(each["workers_killed"] + 1 for each in killed["kills"])
    heads = [f"{figures['tasks']} tasks", "wall time", "overhead a task", "begun", "computed to the end", "table"]
    counts = [[str(figures[run][what]) for what in ("begun", "ended")] for run in ("in_process", "ray", "killed")]
    return [
        heads,
        ["---"] * len(heads),
        [
            "in-process",
            f"{figures['in_process']['seconds']:.0f} s",
            f"{overhead['in-process']:.0f} ms",
            *counts[0],
            "–",
        ],
        [
            f"Ray, {figures['workers']} workers",
            f"{figures['ray']['seconds']:.0f} s",
            f"{overhead['ray']:.0f} ms",
            *counts[1],
            equal[figures["ray_table_equals_in_process"]],
        ],
        [
            f"the same, {times} SIGKILLs, {len(killed['kills'])} of them at the driver",
            "",
            "",
            *counts[2],
            equal[figures["killed_table_equals_in_process"]],
        ],
    ]


def _trace() -> list[list[str]]:
    return trace_rows(_figures("trace_trained")["models"])


def trace_rows(models: dict[str, Any]) -> list[list[str]]:
    """The rows of the table of traced models.

    Args:
        models: as `benchmarks/trace_trained.py` records them.

    Returns:
        Head, rule and one row a stream.
    """
    heads = ["model", "stream", "inputs", "N/d", "verdict", "smallest ratio", "blocks below 1", "not judged", "events"]
    rows = [heads, ["---"] * len(heads)]
    for model in models.values():
        for stream in model["streams"]:
            kind = "blocks" if stream["stream"] == "final" else stream["stream"]
            ratio, verdict = stream["smallest_ratio"], stream["verdict"].replace("_", " ")
            least = "–" if ratio is None else f"{ratio:.2f} at block {stream['smallest_ratio_block']}"
            below = f"{stream['ratios_below_1']} of {stream['blocks']}"
            if stream["verdict"] == "not_applicable":
                last = stream["last"]
                least = f"σ_min at the end {last['uncentred']:.1e}, about the mean {last['centred']:.1e}"
                below = "–"
            limited = len(stream["rank_limited"]) + len(stream["at_floor"])
            unjudged = f"{limited} of {stream['blocks'] + 1} nodes" if limited else "none"
            unjudged = "all" if stream["verdict"] == "not_applicable" else unjudged
            events = "; ".join(f"{e['kind']} at block {e['block']}: {e['cause']}" for e in stream["events"])
            fill = f"{stream['tokens_per_dimension']:.1f}"
            row = [model["model"], f"{stream['blocks']} {kind}", model["inputs"], fill, verdict, least, below]
            rows.append([*row, unjudged, events or "none"])
    return rows


def _trace_large() -> list[list[str]]:
    rows = [["model", "stream", "d", "N/d", "verdict", "smallest step ratio", "with building", "peak memory"]]
    rows.append(["---"] * len(rows[0]))
    for model in _figures("trace_large_h200"):
        for stream in model["streams"]:
            first = stream is model["streams"][0]
            ratio = stream["smallest_step_ratio"]
            rows.append(
                [
                    model["model"] if first else "",
                    stream["role"],
                    f"{stream['hidden_size']:,}",
                    f"{stream['tokens'] / stream['hidden_size']:.0f}",
                    stream["verdict"],
                    "-" if ratio is None else f"{ratio:.4f} at block {stream['at_block']}",
                    f"{model['seconds_with_building']:.1f} s" if first else "",
                    f"{model['peak_gb']:.0f} GB" if first else "",
                ]
            )
    return rows


def _classify() -> list[list[str]]:
    headings = [
        "model",
        "R as it is",
        "initial share",
        "`classify`",
        "R, shapes alone",
        "`classify`, no config, no names",
    ]
    rows = [headings, ["---"] * len(headings)]
    for row in _figures("classify_trained")["models"]:
        cells = [row["model"]]
        for side in ("as_is", "stripped"):
            found = row[side]["fingerprint"]
            cells.append(f"{found['R']:.2f} ± {found['deviation']:.2f}")
            cells += [f"≤ {found['initial_share']:.2f}"] if side == "as_is" else []
            cells.append(row[side]["kind"])
        rows.append(cells)
    return rows


def _planted() -> list[list[str]]:
    rows = [["planted", "kind", "contradictions"], ["---", "---", "---"]]
    for row in _figures("classify_trained")["planted"]:
        rows.append([row["case"], row["kind"], "; ".join(row["contradictions"]) or "none"])
    return rows


def _command(name: str) -> str:
    return str(json.loads((RESULTS / f"{name}.json").read_text())["environment"]["command"])


def _figures(name: str) -> Any:
    figures: Any = json.loads((RESULTS / f"{name}.json").read_text())["figures"]
    return figures


def _claims() -> list[list[str]]:
    rows = [["claim", "the paper", "here", "verdict"], ["---"] * 4]
    return rows + [
        [_sign(c["says"]), _sign(c["theirs"]) or "–", _sign(c["ours"]), _words(c["verdict"])]
        for c in _judged().values()
    ]


def _claim(name: str) -> list[list[str]]:
    claim = _judged()[name]
    return [["", claim["says"]], ["---"] * 2, ["the paper", _sign(claim["theirs"]) or "not a claim of the paper's"],
            ["here", _sign(claim["ours"])], ["verdict", _words(claim["verdict"])]]  # fmt: skip


def _judged() -> dict[str, dict[str, str]]:
    """Claims by name, from whichever run tested them."""
    claims = [c for record in ("reproduce_h200", "reproduce_trained") for c in _figures(record)["record"]["claims"]]
    tested = {c["name"]: c for c in claims if c["verdict"] != "not_tested"}
    return {c["name"]: tested.get(c["name"], c) for c in claims}


def _reproduce() -> list[list[str]]:
    heads = ["`random:`", "parameters", "kind", "d", "seeds", "dtype", "γ⁻¹", "γ⁻¹, gains redrawn", "1/√d there"]
    rows = [[*heads, "λ_dead/mean, float64", "stream, smallest step ratio"], ["---"] * (len(heads) + 2)]
    for row in _figures("reproduce_h200")["record"]["models"]:
        size = row["parameters"]
        redrawn = ["–" if row[key] is None else f"{row[key]:.6f}" for key in ("alignment_redrawn", "uniform_redrawn")]
        stream = f"{row['trace']} {row['smallest_step_ratio']:.3f}" if row["trace"] else "–"
        about = [row["model"].removeprefix("random:"), f"{size / 1e9:.2f}B", row["kind_seen"], str(row["hidden_size"])]
        found = [f"{row['alignment']:.6f}", *redrawn, f"{row['dead_share_float64']:.0e}", stream]
        rows.append([*about, str(len(row["seeds"])), row["dtype"], *found])
    return rows


def _reproduce_time() -> list[list[str]]:
    rows = [["run", "wall time, imports included", "of it"], ["---"] * 3]
    for name in ("reproduce_once_h200", "reproduce_h200"):
        figures = _figures(name)
        parts = ", ".join(f"{kind.strip()} {seconds:.0f} s" for kind, seconds in figures["seconds_by_kind"].items())
        rows.append([f"`{_command(name)}`", f"{figures['wall_seconds']:.0f} s", parts])
    return rows


def _reproduce_trained() -> list[list[str]]:
    heads = ["model", "kind", "d", "inputs", "N/d", "deeper by, decades", "by the gain alone", "dead directions"]
    rows = [[*heads, "twins", "by the gain", "learned", "stream"], ["---"] * (len(heads) + 4)]
    for row in _figures("reproduce_trained")["record"]["trained"]:
        decades = ["–" if row[key] is None else f"{row[key]:+.2f}" for key in ("deepening", "gain_decades")]
        dead = [str(row[key]) for key in ("dead", "dead_twin", "algebraic_dead", "learned_dead")]
        about = [row["model"], row["kind"], str(row["hidden_size"]), row["data"], f"{row['tokens_per_dimension']:.1f}"]
        rows.append([*about, *decades, *dead, _words(row["trace"])])
    return rows


def _words(key: str) -> str:
    return key.replace("_", " ")


def _sign(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return text.replace("|", "\\|")


TABLES: dict[str, Callable[[], list[list[str]]]] = {
    "hub": _hub,
    "claims": _claims,
    **{
        f"claim {name}": partial(_claim, name)
        for name in ("kernel", "gain", "no_kernel", "residual", "classification", "fisher", "depth", "further")
    },
    "reproduce": _reproduce,
    "reproduce_time": _reproduce_time,
    "reproduce_trained": _reproduce_trained,
    "classify": _classify,
    "planted": _planted,
    "engine": _engine,
    "fisher": _fisher,
    "fisher_cost": _fisher_cost,
    "host": _host,
    "peers": _peers,
    "report": _report,
    "sweep": _sweep,
    "trace": _trace,
    "trace_large": _trace_large,
}
