"""The engine on a real accelerator: equal to the host to rounding, and steady when memory runs out."""

import pytest
import torch
from torch import nn

import deadreckon
from deadreckon.errors import UsageError
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.blocks import find_block_stacks
from deadreckon.forward.bottom import bottom
from deadreckon.forward.moments import Moments
from deadreckon.forward.spectrum import eigensolver
from deadreckon.forward.stream import StreamMoments, node_spectra
from deadreckon.forward.tiny import tiny_model
from deadreckon.verbs.measure import measure
from deadreckon.verbs.trace import trace

pytestmark = pytest.mark.gpu

U = torch.finfo(torch.float64).eps / 2
CUDA = torch.device("cuda")


def test_moments_are_those_of_the_host():
    tokens = torch.randn(9000, 640, generator=torch.Generator().manual_seed(0)) + 100
    host, device = Moments(640), Moments(640, CUDA)
    host.update(tokens)
    device.update(tokens.to(CUDA))
    # Sums of N terms of size |y|^2 in different orders.
    bound = 4 * 9000 * U * float(host.scatter().diagonal().max() + 9000 * 1e4)
    assert (device.scatter().cpu() - host.scatter()).abs().max() <= bound


@pytest.mark.parametrize("batch", [1, 8])
def test_bottom_of_prescribed_spectra(batch):
    size = 1500  # not a multiple of any block
    generator = torch.Generator().manual_seed(0)
    truth = torch.stack(
        [
            torch.cat([torch.tensor([0.0, 1e-13, 1e-9, 1e-9]), torch.linspace(0.1, 1 + k, size - 4)]).double()
            for k in range(batch)
        ]
    )
    frames = torch.linalg.qr(torch.randn(batch, size, size, generator=generator, dtype=torch.float64)).Q
    matrices = ((frames * truth[:, None]) @ frames.mT).to(CUDA)
    found = bottom((matrices + matrices.mT) / 2, 6, complete=True)
    floor = 4 * size * U * truth[:, -1:]
    assert found.certified.all()
    assert found.complete.all()
    assert ((found.eigenvalues.cpu() - truth[:, :6]).abs() <= found.error.cpu() + floor).all()


def test_bottom_solver_agrees_with_the_whole_solve():
    tokens = torch.randn(8192, 1024, generator=torch.Generator().manual_seed(1)).to(CUDA)
    tokens[:, 0] = tokens[:, 1]  # one dead direction
    moments = Moments(1024, CUDA)
    moments.update(tokens)
    part, whole = (eigensolver(name).solve(moments, None) for name in ("bottom", "eigh"))
    assert part.rest is not None
    assert abs(float(part.eigenvalues[0] - whole.eigenvalues[0])) <= 8 * whole.floor
    assert [part.dead_count(t) for t in (1e-2, 1e-8)] == [whole.dead_count(t) for t in (1e-2, 1e-8)] == [1, 1]
    assert part.mean == pytest.approx(whole.mean)
    assert float((part.eigenvectors[:, 0] @ whole.eigenvectors[:, 0]).abs()) >= 1 - 1e-9


def test_a_model_measures_alike_on_host_and_device():
    torch.manual_seed(0)
    model = tiny_model("gpt_neox").eval()
    host = measure(model, tokens=600)
    device = measure(model.to(CUDA), tokens=600)
    assert device.environment.device.startswith("cuda")
    assert device.protocol.status == host.protocol.status == "ok"
    # The model itself rounds differently, by some float32 units.
    assert device.lambda_mean == pytest.approx(host.lambda_mean, rel=1e-4)
    assert device.dead_counts == host.dead_counts
    assert device.alignment >= 0.9999


class Hungry(nn.Module):
    """Takes memory in proportion to its rows, as attention does."""

    def __init__(self, size=64):
        super().__init__()
        self.embed = nn.Embedding(100, size)
        self.norm = nn.LayerNorm(size)
        self.rows = []

    def forward(self, input_ids):
        self.rows.append(len(input_ids))
        torch.empty(len(input_ids), 2**28, dtype=torch.uint8, device=input_ids.device)  # 256 MiB a row
        return self.norm(self.embed(input_ids))


@pytest.fixture
def little_memory():
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 1.2 * 2**30) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def batches(rows):
    generator = torch.Generator().manual_seed(2)
    return [{"input_ids": torch.randint(0, 100, (rows, 128), generator=generator)} for _ in range(2)]


def test_running_out_of_memory_loses_and_doubles_nothing(little_memory):
    torch.manual_seed(0)
    model = Hungry().to(CUDA).eval()
    calm = measure(model, batches=batches(16), batch_size=1, norm="norm")
    model.rows.clear()
    squeezed = measure(model, batches=batches(16), batch_size=16, norm="norm")
    assert max(model.rows) > 8  # did not fit
    assert max(model.rows[-4:]) <= 4
    assert squeezed.tokens == calm.tokens == 2 * 16 * 128
    for key in ("lambda_mean", "lambda_max", "lambda_2"):
        assert getattr(squeezed, key) == pytest.approx(getattr(calm, key), rel=1e-12)


def test_one_row_that_does_not_fit_says_what_would(little_memory):
    model = Hungry().to(CUDA).eval()
    torch.cuda.set_per_process_memory_fraction(0.2 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    with pytest.raises(UsageError, match=r"one row .* does not fit.*--dtype"):
        measure(model, batches=batches(4), norm="norm")


def test_stream_spectra_of_a_model(tmp_path):
    torch.manual_seed(0)
    model = tiny_model("gpt_neox").eval().to(CUDA)
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (64, 24), device=CUDA)
    stream = StreamMoments(find_block_stacks(model, {"input_ids": ids[:1]})[-1])
    with stream.watching(), torch.no_grad():
        kept = model(input_ids=ids, output_hidden_states=True).hidden_states
    nodes = node_spectra(stream.nodes, stream.dtypes)
    for node, hidden in zip(nodes[:-1], kept, strict=False):
        sigma = torch.linalg.svdvals(hidden.flatten(0, 1).double()) / (64 * 24) ** 0.5
        assert abs(node.sigma_min - float(sigma[-1])) <= node.sigma_min_error + 1e-7 * float(sigma[0])


def test_the_trace_is_that_of_the_host():
    torch.manual_seed(0)
    batches = [{"input_ids": torch.randint(5, 100, (40, 24), generator=torch.Generator().manual_seed(0))}]
    model = tiny_model("gpt_neox").eval()
    host = trace(model, batches=batches)
    device = trace(model.to(CUDA), batches=batches)
    assert (device.verdict, device.tokens) == (host.verdict, host.tokens)
    for a, b in zip(host.blocks, device.blocks, strict=True):
        # float32 forwards in other orders; and the bounds that each reports.
        slack = 1e-3 * a.sigma_min + a.sigma_min_error + b.sigma_min_error
        assert abs(a.sigma_min - b.sigma_min) <= slack
        assert a.sigma_geomean == pytest.approx(b.sigma_geomean, rel=1e-3)


def test_a_lost_direction_is_pinpointed_on_the_device():
    model = tiny_model("llama").to(CUDA, torch.bfloat16).eval()
    width = model.config.hidden_size
    planted = torch.nn.functional.normalize(torch.randn(width, device=CUDA, generator=torch.Generator(CUDA)), dim=0)

    given = {}

    def enters(_module, args, kwargs):
        given["stream"] = args[0] if args else kwargs["hidden_states"]

    def cancel(_module, _args, output):
        whole = output[0].float() + given["stream"].float()
        return (output[0] - ((whole @ planted)[..., None] * planted).to(torch.bfloat16), *output[1:])

    block = model.layers[1]
    handles = [block.register_forward_pre_hook(enters, with_kwargs=True), block.self_attn.register_forward_hook(cancel)]
    handles += [block.mlp.register_forward_hook(lambda _m, _a, output: output * 1e-4)]
    found = trace(model, data="random")
    for handle in handles:
        handle.remove()
    assert found.verdict == "collapsed"
    event = found.events[0]
    assert (event.block, event.cause) == (1, "branch_cancellation")
    assert event.evidence.correlation < -0.99


def test_a_trace_that_runs_out_of_memory_starts_anew():
    model = tiny_model("gpt_neox").to(CUDA).eval()
    batches = [{"input_ids": torch.randint(5, 100, (40, 24), generator=torch.Generator().manual_seed(0))}]
    calm, held = trace(model, batches=batches), []

    def hungry(_module, args, kwargs):
        rows = len(args[0] if args else kwargs["hidden_states"])
        if rows > 10:
            held.append(torch.empty(2**50, dtype=torch.uint8, device=CUDA))

    handle = model.layers[2].register_forward_pre_hook(hungry, with_kwargs=True)
    found = trace(model, batches=batches)
    handle.remove()
    assert not held
    for a, b in zip(calm.blocks, found.blocks, strict=True):
        assert a.sigma_min == pytest.approx(b.sigma_min, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fisher_holds_at_every_site(dtype):
    model = tiny_model("gpt_neox", head=True)
    redraw_affine(model, "lognormal:0.5", 0)
    record = deadreckon.fisher(model.to(CUDA, dtype), site="all", tokens=64)
    assert record.holds
    # Rounding to dtype, squared, against a variance that random steps have whole.
    bound = 1e-24 if dtype == torch.float64 else torch.finfo(dtype).eps
    assert all(site.ratio <= bound for site in record.sites)
    assert all(site.is_gauge for site in record.sites)


def test_projected_steps_are_those_of_the_host():
    model = tiny_model("gpt2", head=True)
    redraw_affine(model, "lognormal:0.5", 0)
    generator = torch.Generator().manual_seed(1)
    step = {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
    here = deadreckon.project_out(step, model)
    there = deadreckon.project_out({name: value.to(CUDA) for name, value in step.items()}, model.to(CUDA))
    for name, value in here.items():
        assert there[name].device.type == "cuda"
        # Both are rounded to float32 at the end.
        assert torch.allclose(there[name].cpu(), value, rtol=1e-6, atol=1e-6)
