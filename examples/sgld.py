"""What projecting dead directions out of its noise changes in a sampler that estimates a learning coefficient.

The local learning coefficient (LLC) of a trained model is estimated by Langevin sampling around its weights w0:

    w <- w - eps/2 (n beta grad L(w) + gamma (w - w0)) + sqrt(eps) noise,    LLC = n beta (E[L(w)] - L(w0)),

with beta = 1/log n. Along the dead directions L does not change, so nothing but gamma holds the sampler there: each of
them is a random walk on a leash, of variance 1/gamma in the end. That adds to the distance travelled and, where the
leash is all that acts, nothing to E[L]: in exact arithmetic and to first order the estimate is the same with the noise
projected. Beyond that it need not be, because some families (gain scaling) are curves along which the curvature of L
in other directions changes. This script trains a small LayerNorm transformer, runs both samplers with the same random
numbers, and prints what comes out.

"Of it dead" is the displacement's component in the directions that are dead at w0. The noise is projected off those
that are dead at w, and they turn as w moves, so a part of the displacement is left there with the projection too.

    python examples/sgld.py [--steps 200] [--chains 3] [--seed 0]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import deadreckon

WORDS, LENGTH, SEQUENCES, BATCH = 24, 8, 512, 64
EPSILON, GAMMA = 5e-5, 200.0


def data(generator: torch.Generator) -> Tensor:
    """Sequences of a random Markov chain, which a transformer learns in seconds, down to the chain's entropy."""
    moves = torch.softmax(2 * torch.randn(WORDS, WORDS, generator=generator), -1)
    words = [torch.randint(WORDS, (SEQUENCES,), generator=generator)]
    while len(words) < LENGTH:
        words.append(torch.multinomial(moves[words[-1]], 1, generator=generator)[:, 0])
    return torch.stack(words, 1)


def build() -> nn.Module:
    config = GPTNeoXConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


def loss_of(model: nn.Module, words: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(input_ids=words).logits[:, :-1].flatten(0, 1), words[:, 1:].flatten())


def batches(words: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield words[torch.randint(len(words), (BATCH,), generator=generator)]


def train(model: nn.Module, words: Tensor, steps: int, generator: torch.Generator) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _, batch in zip(range(steps), batches(words, generator), strict=False):
        optimiser.zero_grad()
        loss_of(model, batch).backward()
        optimiser.step()
        schedule.step()


def length(step: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in step.values()))


def chain(model: nn.Module, words: Tensor, steps: int, seed: int, project: bool) -> dict[str, float]:
    """One chain from the model's weights, which are put back."""
    generator = torch.Generator().manual_seed(seed)
    dead = deadreckon.dead_directions(model)  # the structure is found once; its parameters are read at every step
    weights = dict(model.named_parameters())
    start = {name: p.detach().clone() for name, p in weights.items()}
    strength = SEQUENCES / math.log(SEQUENCES)
    losses = []
    with torch.no_grad():
        first = float(loss_of(model, words))
    for step, batch in zip(range(steps), batches(words, generator), strict=False):
        model.zero_grad()
        loss_of(model, batch).backward()
        noise = {name: torch.randn(p.shape, generator=generator) for name, p in weights.items()}
        if project:
            noise = deadreckon.project_out(noise, dead)
        with torch.no_grad():
            for name, p in weights.items():
                p -= EPSILON / 2 * (strength * p.grad + GAMMA * (p - start[name])) - math.sqrt(EPSILON) * noise[name]
            if step >= steps // 2 and (steps - step) % 5 == 1:
                losses.append(float(loss_of(model, words)))
    moved = {name: p.detach() - start[name] for name, p in weights.items()}
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(start[name])
    alive = deadreckon.project_out(moved, dead)  # the weights are w0 again: off the directions that are dead there
    return {
        "llc": strength * (sum(losses) / len(losses) - first),
        "loss": losses[-1] - first,
        "distance": length(moved),
        "dead": length({name: value - alive[name] for name, value in moved.items()}),
    }


def leash(dimensions: int, steps: int) -> float:
    """Root mean square distance of that many random walks held by gamma alone."""
    kept = (1 - EPSILON * GAMMA / 2) ** 2
    return math.sqrt(dimensions * EPSILON * (1 - kept**steps) / (1 - kept))


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std() / math.sqrt(len(values)))


def main(arguments: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--chains", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = build()
    words = data(generator)
    train(model, words, 300, generator)
    dimensions = len(deadreckon.dead_directions(model))
    parameters = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        loss = float(loss_of(model, words))
    print(f"{dimensions:,} of {parameters:,} parameter dimensions are dead; loss {loss:.4f}")
    runs = {
        name: [chain(model, words, options.steps, options.seed + 1 + i, project) for i in range(options.chains)]
        for name, project in (("all noise", False), ("projected", True))
    }
    print(f"{'':12}{'LLC':>16}{'loss - L(w0)':>20}{'distance':>18}{'of it dead':>18}")
    for name, chains in runs.items():
        columns = [spread([run[key] for run in chains]) for key in ("llc", "loss", "distance", "dead")]
        places = (2, 4, 3, 3)
        print(f"{name:12}" + "".join(
            f"{f'{mean:.{p}f} ± {error:.{p}f}':>{w}}"
            for (mean, error), p, w in zip(columns, places, (16, 20, 18, 18), strict=True)
        ))  # fmt: skip
    print(f"{dimensions:,} random walks held by gamma alone would be at {leash(dimensions, options.steps):.3f}")
    pairs = zip(runs["projected"], runs["all noise"], strict=True)
    change, error = spread([projected["llc"] - plain["llc"] for projected, plain in pairs])
    print(f"change of the LLC, chain by chain: {change:+.2f} ± {error:.2f}")
    return runs


if __name__ == "__main__":
    main()
