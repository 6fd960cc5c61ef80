"""Fuzz every parser of files for longer, guided by the branches that inputs reach (needs the package atheris).

    python scripts/fuzz_guided.py [--inputs N] [--seed S] [--jobs J] [--parser NAME]

What is fuzzed, from which corpus, and what counts as a finding is as in fuzz.py, whose edits are blind: these grow a
corpus of their own, input by input, from what reached something new. Figures go to benchmarks/results/fuzz_guided.json.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import pkgutil
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fuzz import CORPUS, PARSERS, ROOT, Watch, arguments, edited, record, target

_SLOW = 2.0  # seconds of processor time
_MEMORY = 1024  # MB of the process, the fuzzer's own included


class Finding(Exception):
    """What an input must not do."""


def fuzz(parser: str, inputs: int, seed: int) -> None:
    """One parser in this process, which ends with it; a finding ends it with another exit code."""
    import atheris

    with atheris.instrument_imports(include=["deadreckon"]):
        room = importlib.import_module("deadreckon.checkpoint")
        for module in pkgutil.iter_modules(room.__path__):
            importlib.import_module(f"deadreckon.checkpoint.{module.name}")
    from deadreckon.checkpoint.pickles import TruncatedError
    from deadreckon.errors import DeadreckonError

    for codec in ("raw_unicode_escape", "unicode_escape", "latin_1", "ascii"):  # which pickletools looks up late
        codecs.lookup(codec)
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        folder, grown = Path(name).resolve() / "files", Path(name).resolve() / "grown"
        folder.mkdir()
        grown.mkdir()
        for file in CORPUS.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        for file in PARSERS[parser]:
            (grown / file).write_bytes((CORPUS / file).read_bytes())
        path, watch = folder / PARSERS[parser][0], Watch(folder)
        for number in range(400):  # what is imported or read late, such as why an architecture is not known, is now
            chance = random.Random(number)
            content = (CORPUS / chance.choice(PARSERS[parser])).read_bytes()
            path.write_bytes(edited(content, chance) if number else content)
            with contextlib.suppress(DeadreckonError, TruncatedError):
                target(parser, path)

        def once(data: bytes) -> None:
            path.write_bytes(data)
            started = time.process_time()
            watch.armed = True
            with contextlib.suppress(DeadreckonError, TruncatedError):
                target(parser, path)
            watch.armed = False
            seconds = time.process_time() - started
            if seconds > _SLOW or watch.seen:
                raise Finding(f"{seconds:.1f} s; {sorted(watch.seen)}")

        limits = [f"-runs={inputs}", f"-seed={seed + 1}", f"-rss_limit_mb={_MEMORY}", "-max_len=8192"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={ROOT}/", str(grown)], once)
        atheris.Fuzz()


def main() -> int:
    """Fuzz one parser here, or all of them in processes of their own."""
    given = arguments(__doc__)
    if given.parser:
        fuzz(given.parser, given.inputs, given.seed)
        return 0

    def apart(parser: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--parser", parser, f"--inputs={given.inputs}", f"--seed={given.seed}"]
        ran = subprocess.run(command, capture_output=True, text=True)
        said = ran.stderr + ran.stdout
        done = re.search(r"Done (\d+) runs in (\d+) second", said)
        reached = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)/.*rss: (\d+)Mb", said)
        lines = [line for line in said.splitlines() if re.match(r"\S*(Finding|Error|Exception)\b", line)]
        figures = {
            "inputs": int(done[1]) if done else 0,
            "seconds": int(done[2]) if done else None,
            "branches_first": int(reached[0][0]) if reached else None,
            "branches": int(reached[-1][0]) if reached else None,
            "corpus": int(reached[-1][1]) if reached else None,
            "peak_mb": int(reached[-1][2]) if reached else None,
            "findings": lines[:20] or ([] if ran.returncode == 0 else [said[-500:]]),
        }
        print(parser, figures, file=sys.stderr)
        return figures

    return record("fuzz_guided", apart, given)


if __name__ == "__main__":
    sys.exit(main())
