"""Records made by hand: of the shapes that verbs return, with numbers that a test can know."""

from dataclasses import replace

from deadreckon.results.census import Census, TensorCount
from deadreckon.results.fisher import Fisher, FisherSite, GaugeStep
from deadreckon.results.measurement import Eigenvalues, Environment, Gap, GapFigure, Measurement, Protocol, Twin
from deadreckon.results.reading import Classification, Classifications, Evidence, FileStamp
from deadreckon.results.reproduction import Claim, Failure, ModelRow, Reproduction, TrainedRow
from deadreckon.results.task import Task
from deadreckon.results.trace import Coordinate, Event, Node, Stream, StreamDirection, StreamEvidence, Trace

PLACE = Environment(device="cpu", dtype="float32", python="3.12.0", platform="Linux", libraries={"torch": "2.13.0"})
STAMP = FileStamp(name="model.safetensors", bytes=123, sha256="ab" * 32, covers="file")


def spectrum(size=48, dead=1):
    """A bulk from a hundredth to ten times the mean, `dead` values at rounding below it."""
    ranks = list(range(1, size + 1))
    bulk = [10 ** (-2 + 3 * (rank - dead) / (size - dead)) for rank in ranks[dead:]]
    return Eigenvalues(
        ranks=ranks,
        native=[1e-14] * dead + bulk,
        float64=[-1e-17] * dead + bulk,
        native_floor=[2e-14] * size,
        float64_floor=1e-15,
    )


def figures(kind="layernorm", size=48, dead=None, **changes):
    """Fields that a measurement shares with its twins."""
    kernel = int(kind == "layernorm")
    dead = kernel if dead is None else dead
    counts = {"1e-02": dead, "1e-04": dead, "1e-06": dead, "1e-08": dead}
    fields = {
        "norm": "ln_f",
        "kind": kind,
        "hidden_size": size,
        "tokens": 8 * size,
        "tokens_per_dimension": 8.0,
        "distinct_inputs": 100,
        "tau": 1e-6,
        "kernel_dim": kernel,
        "predicted_dead": dead,
        "tested": "kernel" if kernel else "candidate",
        "alignment": 1.0 if kernel else 0.02,
        "alignment_uniform": 0.88 if kernel else 0.01,
        "alignment_float64": 1.0 if kernel else 0.02,
        "bottom_simple": True,
        "subspace_alignment": 1.0 if kernel else 0.02,
        "largest_principal_angle": 1e-8 if kernel else None,
        "largest_principal_angle_floor": 1e-8 if kernel else None,
        "largest_principal_angle_float64": 1e-15 if kernel else None,
        "largest_principal_angle_float64_floor": 1e-15 if kernel else None,
        "lambda_dead": 1e-13 if kernel else 0.7,
        "lambda_dead_floor": 1e-13,
        "lambda_dead_at_floor": bool(kernel),
        "lambda_dead_float64": 1e-31 if kernel else 0.7,
        "lambda_dead_float64_floor": 1e-31,
        "lambda_dead_float64_at_floor": bool(kernel),
        "lambda_dead_rank": 0,
        "lambda_min": 1e-14 if kernel else 0.01,
        "lambda_min_floor": 2e-14,
        "lambda_min_at_floor": bool(kernel),
        "lambda_2": 0.01,
        "lambda_2_floor": 2e-14,
        "lambda_2_at_floor": False,
        "lambda_mean": 1.0,
        "lambda_max": 10.0,
        "spectral_gap": None,
        "condition_number": None,
        "depth_decades": 13.0 if kernel else 0.15,
        "depth_decades_float64": 31.0 if kernel else 0.15,
        "dead_counts": counts,
        "dead_counts_native": counts,
        "algebraic_dead": dead,
        "learned_dead": 0,
        "effective_rank": 0.8 * size,
        "participation_ratio": 20.0,
        "stable_rank": 5.0,
        "schur_ratio": None,
        "schur_reference": 0.1,
        "protocol": Protocol(
            status="ok",
            norm_residual=1e-7,
            norm_tolerance=5e-7,
            kernel_variance=1e-31 if kernel else None,
            kernel_tolerance=1e-24,
            why="",
        ),
        "spectrum": spectrum(size, dead),
        "warnings": [],
    }
    return {**fields, **changes}


def measurement(model="random:pythia-160m", kind="layernorm", twins=0, **changes):
    """A measurement, with `twins` random-init twins whose depth is `change` decades less, three by default."""
    own = {
        name: changes.pop(name)
        for name in ("affine", "seed", "revision", "environment", "data", "files", "solver")
        if name in changes
    }
    deeper = changes.pop("change", 3.0)
    made = figures(kind, **changes)
    depth = made["depth_decades"]
    away = {**figures(kind), "depth_decades": depth - deeper}
    change = GapFigure(change=deeper, smallest=deeper, largest=deeper)
    gap = Gap(
        depth_decades=change,
        lambda_dead_decades=change,
        effective_rank=change,
        dead_counts={"1e-02": change, "1e-06": change},
    )
    fields = {
        "model": model,
        "revision": None,
        "described_by": "checkpoint",
        "files": [STAMP],
        "data": "English text",
        "skipped_inputs": 0,
        "seed": 0,
        "affine": None,
        "solver": "eigh",
        "environment": PLACE,
        "seconds": 1.5,
        "twins": [Twin(seed=1 + k, **away) for k in range(twins)],
        "gap": gap if twins else None,
    }
    return Measurement(**made, **{**fields, **own})


def trace(model="random:pythia-160m", collapsed=False, blocks=6, says="the branch cancels what was there"):
    """A stream that keeps its smallest singular value, or loses it at block 3."""
    sigma = [0.5 * 1.1**k for k in range(blocks + 1)]
    if collapsed:
        sigma[4:] = [1e-6] * (blocks - 3)
    nodes = [
        Node(
            index=k - 1, block=f"h.{k - 1}" if k else "", sigma_min=value, sigma_min_error=0.0, sigma_floor=1e-7,
            sigma_geomean=2.0, sigma_max=30.0, step_ratio=value / sigma[k - 1] if k else None,
            relative_step_ratio=value / sigma[k - 1] if k else None, cumulative_ratio=value / sigma[0],
        )
        for k, value in enumerate(sigma)
    ]  # fmt: skip
    evidence = StreamEvidence(
        step_ratio=1e-6,
        relative_step_ratio=1e-6,
        before=0.6,
        after=1e-6,
        floor=1e-7,
        correlation=-1.0,
        write_ratio=1.0,
        remainder=0.0,
        writes=[],
        unexplained_write=None,
        scalar=None,
        scalar_tensor=None,
        dead_coordinates=[],
        dead_weight=0.0,
        norm_alignment=None,
        tokens=[],
        carriers=None,
        parameter_bound=None,
        survives_to=5,
        last=1e-6,
        after_final_norm=None,
        attributed_to=None,
    )
    direction = StreamDirection(participation_ratio=1.2, top=[Coordinate(coordinate=7, weight=0.9)])
    event = Event(
        block=3,
        module="h.3",
        kind="collapsed",
        cause="branch_cancellation",
        says=says,
        direction=direction,
        evidence=evidence,
    )
    common = {
        "role": "final",
        "blocks_path": "h",
        "hidden_size": 48,
        "tokens": 400,
        "tokens_per_dimension": 8.3,
        "distinct_inputs": 90,
        "blocks": nodes,
        "worst_block": 3 if collapsed else 1,
        "verdict": "collapsed" if collapsed else "preserved",
        "why": "a direction is lost at block 3" if collapsed else "no step ratio below 1",
        "events": [event] if collapsed else [],
        "warnings": [],
    }
    return Trace(
        model=model,
        **common,
        collapse_ratio=0.1,
        streams=[Stream(**common)],
        data="random ids",
        skipped_inputs=0,
        seed=0,
        revision=None,
        files=[],
        affine=None,
        environment=PLACE,
        passes=1,
        seconds=2.0,
    )


def classifications(*models, kind="layernorm", value="bert is in the atlas", contradictions=()):
    """One classification a model."""
    evidence = [Evidence(name="architecture", says=kind, strength="decisive", value=value)]
    results = [
        Classification(model=m, kind=kind, evidence=evidence, contradictions=list(contradictions)) for m in models
    ]
    return Classifications(model=", ".join(models), results=results)


def fisher(model="random:pythia-160m", site="head", dead=True):
    """One reader of a LayerNorm."""
    made = FisherSite(
        site=site,
        readers=[site],
        norm="ln_f",
        norm_kind="layernorm",
        has_kernel=True,
        constant=0.1,
        remedy="bias",
        virtual=False,
        closed_form=True,
        dead=1e-20 if dead else 0.5,
        naive=0.01,
        naive_expected=0.01,
        random=[0.5, 1.0, 2.0],
        ratio=1e-20 if dead else 0.5,
        naive_ratio=0.01,
        floor=1e-14,
        is_dead=dead,
        gauge=[
            GaugeStep(step=1.0, max_logit_change=1e-6, kl=0.0, rounding=1e-6, naive_max_logit_change=0.3, naive_kl=0.1)
        ],
        is_gauge=dead,
        naive_is_gauge=False,
        says="a w^T with its bias is dead",
    )
    return Fisher(
        model=model,
        revision=None,
        files=[],
        data="random ids",
        skipped_inputs=0,
        seed=0,
        affine=None,
        environment=PLACE,
        metric="softmax",
        tokens=256,
        draws=3,
        sites=[made],
        holds=dead,
        warnings=[],
        seconds=3.0,
    )


def census(model="random:pythia-160m"):
    """A census of two families."""
    return Census(
        model=model,
        model_class="GPTNeoXForCausalLM",
        output="logits",
        parameters=1000,
        dead_dimensions=30,
        share=0.03,
        by_reason={"reader_with_bias": 20, "writer_mean": 10, "zero_gains": 0},
        by_tensor=[TensorCount(tensor="lm_head.weight", dead=20, parameters=100)],
        layernorm_kernel_share=0.02,
        rlct_upper_bound=485.0,
        generic_dead_dimensions=30,
        norms=3,
        emitted=None,
        notes=[],
        bytes_read=0,
        seconds=0.1,
    )


def task(record=None, model="org/run", step=None, why="", verb="measure", key="k"):
    """A task of a store: done with a record, or failed."""
    return Task(
        model=record.model if record else model,
        key=key,
        verb=verb,
        revision=None,
        step=step,
        options={"tau": 1e-6},
        status="done" if record else "failed",
        why=why,
        result=record.to_dict() if record else None,
        seconds=0.2,
    )


def reproduction(verdict="confirmed"):
    """Two models, one of each kind, a trained one, and a task that failed."""
    row = {
        "parameters": 160_000_000,
        "hidden_size": 768,
        "blocks": 12,
        "dtype": "float32",
        "data": "random token ids",
        "tokens_per_dimension": 4.0,
        "seeds": [0, 1],
        "random_level": 0.03,
        "protocol": "ok",
        "trace": "preserved",
        "smallest_step_ratio": 1.01,
        "events": ["block 3: a scalar"],
        "seconds": 1.0,
    }
    layernorm = {
        "model": "random:pythia-160m",
        "listed_as": "layernorm",
        "kind_read": "layernorm",
        "kind_seen": "layernorm",
        "alignment": 1.0,
        "alignment_mean": 1.0,
        "alignment_redrawn": 1.0,
        "uniform_redrawn": 0.88,
        "dead_share": 1e-13,
        "dead_share_float64": 1e-31,
    }
    rmsnorm = {
        "model": "random:llama-3.1-8b",
        "listed_as": "rmsnorm",
        "kind_read": "",
        "kind_seen": "rmsnorm",
        "alignment": 0.02,
        "alignment_mean": 0.01,
        "alignment_redrawn": None,
        "uniform_redrawn": None,
        "dead_share": 0.9,
        "dead_share_float64": 0.9,
    }
    trained = TrainedRow(
        model="demo:minilm",
        kind="layernorm",
        hidden_size=384,
        dtype="float32",
        data="English text",
        tokens_per_dimension=8.0,
        subspace_alignment=1.0,
        depth_decades=75.0,
        deepening=61.5,
        gain_decades=None,
        dead=3,
        dead_twin=1,
        algebraic_dead=3,
        learned_dead=0,
        effective_rank_change=GapFigure(change=-60.0, smallest=-60.0, largest=-60.0),
        trace="not_applicable",
    )
    return Reproduction(
        model="full scale",
        claims=[
            Claim(name="kernel", says="The bottom direction is gain^-1", theirs="9/9", ours="1/1", verdict=verdict),
            Claim(name="depth", says="Training deepens it", theirs="3 decades", ours="no model", verdict="not_tested"),
        ],
        models=[ModelRow(**row, **layernorm), ModelRow(**row, **rmsnorm)],
        trained=[trained],
        fisher=[],
        failures=[Failure(model="random:opt-13b", verb="measure", why="out of memory")],
        environment=PLACE,
        store="deadreckon-reproduce-full",
        seconds=300.0,
    )


def everything(name=str):
    """One of each kind; `name` makes each name and each text of theirs."""
    model = name("random:pythia-160m")
    run = [task(measurement(name("org/run"), effective_rank=40.0 - step / 100), step=step) for step in (0, 1, 512)]
    return [
        measurement(model, warnings=[name("a warning")], norm=name("ln_f"), data=name("English text")),
        measurement(name("demo:minilm"), dead=3, twins=2),
        measurement(name("demo:smollm2"), "rmsnorm", twins=1),
        trace(model, collapsed=True, says=name("the branch cancels")),
        classifications(model, value=name("bert"), contradictions=[name("but the weights say otherwise")]),
        fisher(model, site=name("head")),
        replace(census(model), model_class=name("GPTNeoXForCausalLM")),
        *run,
        task(None, name("org/broken"), 7, name("no such revision")),
    ]
