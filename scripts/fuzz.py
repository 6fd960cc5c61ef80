"""Fuzz every parser of files: edited copies of small valid files must open or be refused, and do nothing else.

    python scripts/fuzz.py [--inputs N] [--seed S] [--jobs J] [--parser NAME]

The corpus lies in tests/checkpoint/corpus. Each input is made from one of its files by one to six edits that depend on
the seed, the parser and the input's number alone, so that a finding can be made again. A finding is an exception that
is no refusal, an input that takes over two seconds of processor time, and, watched by an audit hook, a file opened
outside the folder of the input and of the package's own tables, a module imported, code run or a process started. Peak
memory is that of a process for each parser. Figures go to benchmarks/results/fuzz.json.
"""

from __future__ import annotations

import argparse
import codecs
import json
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "checkpoint" / "corpus"

# What is fuzzed: the files that are edited. Those beside them are copied as they are.
PARSERS = {
    "safetensors": ["plain.safetensors"],
    "index": ["model.safetensors.index.json"],
    "gguf": ["plain.gguf"],
    "torch zip": ["zip.pt", "zip5.pt"],
    "torch sequential": ["sequential.pt"],
    "pickle": ["plain.pickle", "state.pickle"],
    "onnx": ["fused.onnx", "built.onnx", "external.onnx"],
}
_NUMBERS = (0, 1, 127, 128, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, 10**8)
_FORBIDDEN = ("import", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")
_SLOW = 2.0


def edited(content: bytes, random: random.Random) -> bytes:
    """A copy with one to six edits."""
    raw = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        at = random.randrange(len(raw) + 1)
        match random.randrange(8):
            case 0:
                raw[at : at + 1] = bytes([random.randrange(256)])
            case 1 if at < len(raw):
                raw[at] ^= 1 << random.randrange(8)
            case 2:
                del raw[at : at + random.choice((1, 2, 8, 64))]
            case 3:
                raw[at:at] = random.randbytes(random.choice((1, 2, 8)))
            case 4:
                width = random.choice(("<B", "<H", "<I", "<Q"))
                size = struct.calcsize(width)
                raw[at : at + size] = struct.pack(width, random.choice(_NUMBERS) % (1 << 8 * size))
            case 5:  # a piece of itself, elsewhere or again and again
                start = random.randrange(len(raw) + 1)
                raw[at:at] = raw[start : start + random.choice((4, 16, 64, 256))] * random.choice((1, 1, 2, 50))
            case 6 if random.random() < 0.3:
                del raw[at:]
            case _:
                digits = bytes(random.choice(b'0123456789-[]{}",:./\\') for _ in range(random.choice((1, 3, 20))))
                raw[at : at + len(digits)] = digits
    return bytes(raw)


class Watch:
    """An audit hook that notes what a parser must not do, while it is armed."""

    def __init__(self, folder: Path) -> None:
        self.own = str(folder), str(Path(find_spec("deadreckon").origin).parent / "checkpoint" / "data")
        self.armed, self.seen = False, set[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in _FORBIDDEN:
            self.seen.add(f"{event} {str(arguments[:1])[:80]}")
        elif event == "open" and not str(arguments[0]).startswith(self.own):
            self.seen.add(f"open {str(arguments[0])[:80]}")


def target(parser: str, path: Path) -> None:
    """All that reading does with a file."""
    from deadreckon.checkpoint.find import find_norms
    from deadreckon.checkpoint.pickles import load
    from deadreckon.checkpoint.source import open_model
    from deadreckon.errors import DeadreckonError

    if parser == "pickle":
        load(path.read_bytes(), 0, str(path))
        return
    checkpoint = open_model(path)
    for name in list(checkpoint.tensors)[:20]:
        try:
            checkpoint.vector(name)
        except DeadreckonError:
            continue
    find_norms(checkpoint, kind="layernorm")


def fuzz(parser: str, inputs: int, seed: int) -> dict[str, Any]:
    """Figures of one parser, run in this process."""
    from deadreckon.checkpoint.pickles import TruncatedError
    from deadreckon.errors import DeadreckonError

    for codec in ("raw_unicode_escape", "unicode_escape", "latin_1", "ascii"):  # which pickletools looks up late
        codecs.lookup(codec)
    shared = Path("/dev/shm")
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        folder = Path(name).resolve()
        for file in CORPUS.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        sources = [(folder / name, (CORPUS / name).read_bytes()) for name in PARSERS[parser]]
        watch = Watch(folder)

        def one(path: Path, content: bytes, number: int) -> str:
            nonlocal slowest
            path.write_bytes(content)
            started = time.process_time()
            watch.armed = number >= 200  # by then what is imported late has been
            try:
                target(parser, path)
                outcome = "opened"
            except (DeadreckonError, TruncatedError):
                outcome = "refused"
            except Exception as error:
                outcome = "failed"
                findings.append(f"input {number}: {type(error).__name__}: {str(error)[:200]}")
            finally:
                watch.armed = False
            seconds = time.process_time() - started
            slowest = max(slowest, seconds)
            if seconds > _SLOW:
                findings.append(f"input {number}: {seconds:.1f} s")
            for seen in sorted(watch.seen):
                findings.append(f"input {number}: {seen}")
            watch.seen.clear()
            return outcome

        for path, content in sources:
            if (outcome := one(path, content, -1)) != "opened":
                findings.append(f"{path.name} is {outcome} unedited")
        began = time.process_time()
        for number in range(inputs):
            chance = random.Random(f"{seed} {parser} {number}")
            path, content = chance.choice(sources)
            outcomes[one(path, edited(content, chance), number)] += 1
            path.write_bytes(content)
    return {
        "inputs": inputs,
        **{outcome: outcomes[outcome] for outcome in ("opened", "refused", "failed")},
        "seconds": round(time.process_time() - began, 1),
        "slowest_seconds": round(slowest, 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "findings": findings[:20],
    }


def main() -> int:
    """Fuzz one parser here, or all of them in processes of their own."""
    given = arguments(__doc__)
    if given.parser:
        print(json.dumps(fuzz(given.parser, given.inputs, given.seed)))
        return 0

    def apart(parser: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--parser", parser, f"--inputs={given.inputs}", f"--seed={given.seed}"]
        figures: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(parser, figures, file=sys.stderr)
        return figures

    return record("fuzz", apart, given)


def arguments(about: str | None) -> argparse.Namespace:
    """What the command line asks for."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=100_000, help="for each parser")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--jobs", type=int, default=1, help="parsers at a time")
    options.add_argument("--parser", choices=PARSERS, help="only this one, in this process")
    return options.parse_args()


def record(name: str, apart: Callable[[str], dict[str, Any]], given: argparse.Namespace) -> int:
    """Fuzz every parser in a process of its own and write the figures; exit code 1 where anything was found."""
    with ThreadPoolExecutor(given.jobs) as pool:
        figures = dict(zip(PARSERS, pool.map(apart, PARSERS), strict=True))
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from common import write

    total = sum(figure["inputs"] for figure in figures.values())
    findings = sum(len(figure["findings"]) for figure in figures.values())
    write(name, {"inputs": total, "findings": findings, "seed": given.seed, "parsers": figures})
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
