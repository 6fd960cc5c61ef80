"""Models on the Hugging Face hub: which commit a name means, what its repository holds, and what is cached of it.

The hub is asked once for the commit and its files; every later request names the commit. Files that huggingface_hub's
cache has of that commit are read there. The token is that of huggingface_hub's login and goes to the hub alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from deadreckon import __version__
from deadreckon.checkpoint.bounded import HEADER_LIMIT, parse_json, read_json
from deadreckon.checkpoint.places import Place
from deadreckon.checkpoint.remote import Link, NoAnswerError, Web, hub_library
from deadreckon.checkpoint.stores import Store, StoredFile, StoredPath
from deadreckon.errors import DeadreckonError, UnreachableError

_PART = r"[A-Za-z0-9_][\w.-]*"
_NAME = re.compile(rf"({_PART}(?:/{_PART})?)((?:/{_PART})*)(?:@([\w./-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LIST_LIMIT = 10_000_000  # bytes: a repository of tens of thousands of files
_FILES_TO_LOAD = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]
_COPIES = ["consolidated*.safetensors", "*.fp16.safetensors", "*.fp16-*.safetensors", "original/*", "onnx/*"]


@dataclass(frozen=True)
class HubName:
    """``ORG/NAME[/PATH][@REVISION]``, or ``NAME[@REVISION]`` of the oldest models, taken apart."""

    repository: str
    inside: PurePosixPath
    revision: str | None

    @classmethod
    def parse(cls, name: str) -> HubName | None:
        """The parts of a name, None for what cannot be one."""
        match = _NAME.fullmatch(name)
        if (
            match is None
            or len(match[1]) > 96
            or any(bad in match[1] for bad in ("..", "--"))
            or match[1].endswith(".git")
        ):
            return None
        return cls(match[1], PurePosixPath(match[2].lstrip("/")), match[3])

    def __str__(self) -> str:
        return _named(self.repository, self.inside, self.revision)


def open_hub(name: HubName) -> tuple[Place, str]:
    """Where to read a model of the hub, and the commit that it is of.

    Args:
        name: what was named.

    Returns:
        A path in huggingface_hub's cache where that has all of it (offline, or without an answer: what it has),
        otherwise one on the hub; and the commit's hash.

    Raises:
        NoAnswerError: the hub cannot be reached, and the cache holds nothing of it.
        UnreachableError: no such model or revision, no leave to read it, or offline and not cached.
    """
    if is_offline():
        if (cached := _cached(name)) is None:
            raise UnreachableError(
                f"{name}: not in the cache ({_constants().HF_HUB_CACHE}), and offline nothing is asked for: "
                "leave --offline (HF_HUB_OFFLINE) out"
            )
        return cached
    if name.revision and _COMMIT.fullmatch(name.revision) and (cached := _cached(name)) and _is_complete(cached[0]):
        return cached
    try:
        repository = Repository(name.repository, name.revision)
    except NoAnswerError as error:
        if (cached := _cached(name)) is not None:
            return cached
        raise NoAnswerError(f"{error}; and no such file or directory is here") from None
    place = StoredPath(repository, name.inside)
    if name.inside.parts and not place.exists():
        raise UnreachableError(f"{name}: {name.repository} holds no {name.inside}")
    return place, repository.commit


def download(name: HubName) -> Path:
    """The files that loading a model takes, downloaded into huggingface_hub's cache.

    Args:
        name: what was named.

    Returns:
        The snapshot's directory, or the file that was named.

    Raises:
        UnreachableError: they cannot be had.
    """
    hub = hub_library()
    offline = is_offline()
    try:
        if name.inside.suffix:
            found = hub.hf_hub_download(
                name.repository, str(name.inside), revision=name.revision, local_files_only=offline
            )
            return Path(found)
        found = hub.snapshot_download(
            name.repository,
            revision=name.revision,
            allow_patterns=_FILES_TO_LOAD,
            ignore_patterns=_COPIES,
            local_files_only=offline,
        )
        return Path(found) / name.inside
    except (OSError, ValueError) as error:  # all of huggingface_hub's are one of the two
        raise UnreachableError(f"{name}: cannot be downloaded: {' '.join(str(error).split())[:300]}") from None


def commit_of(path: Path) -> str | None:
    """The commit that a path in huggingface_hub's cache is of; None for other paths."""
    return next(
        (after for part, after in pairwise(path.parts) if part == "snapshots" and _COMMIT.fullmatch(after)), None
    )


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids asking the hub; heeded whenever it is set, also after the first import."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return True
    return bool(_constants().HF_HUB_OFFLINE)


class Repository(Store):
    """One commit of a repository."""

    def __init__(self, name: str, revision: str | None) -> None:
        super().__init__()
        self._name, self._revision = name, revision
        self._endpoint: str = _constants().ENDPOINT
        parts = urlsplit(self._endpoint)
        self.web = Web(f"{parts.scheme}://{parts.netloc}".lower(), _headers(), self._explain)
        url = f"{self._endpoint}/api/models/{name}/revision/{quote(revision or 'main', safe='')}?blobs=true"
        where = str(HubName(name, PurePosixPath(), revision))
        answer = parse_json(self.web.whole(Link(url, where), _LIST_LIMIT), f"{where}: the hub's answer")
        commit = answer.get("sha") if isinstance(answer, dict) else None
        listed = answer.get("siblings") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(listed, list):
            raise UnreachableError(f"{where}: {self._endpoint} does not answer as a hub does")
        self.commit = commit
        self._sizes: dict[PurePosixPath, int | None] = {}
        self._folders: dict[PurePosixPath, set[str]] = {PurePosixPath(): set()}
        for entry in listed:
            if isinstance(entry, dict) and isinstance(path := entry.get("rfilename"), str):
                self._add(PurePosixPath(path), entry.get("size"))

    def label(self, inside: PurePosixPath) -> str:
        """The name in the MODEL grammar, with the revision as it was named."""
        return _named(self._name, inside, self._revision)

    def is_file(self, inside: PurePosixPath) -> bool:
        """Whether the commit has such a file."""
        return inside in self._sizes

    def folder(self, inside: PurePosixPath) -> list[str] | None:
        """What a folder of the commit holds, sorted; None where there is none."""
        return sorted(self._folders[inside]) if inside in self._folders else None

    def _add(self, path: PurePosixPath, size: Any) -> None:
        self._sizes[path] = size if type(size) is int and size >= 0 else None
        for name, folder in zip((path, *path.parents), path.parents, strict=False):
            self._folders.setdefault(folder, set()).add(name.name)

    def _make(self, inside: PurePosixPath) -> StoredFile:
        hub = hub_library()
        url = hub.hf_hub_url(self._name, str(inside), revision=self.commit, endpoint=self._endpoint)
        found = hub.try_to_load_from_cache(self._name, str(inside), revision=self.commit)
        cached = Path(found) if isinstance(found, str) else None
        return StoredFile(self.web, Link(url, self.label(inside), self._sizes.get(inside)), cached)

    def _explain(self, label: str, status: int, headers: Mapping[str, str]) -> str:
        code = headers.get("x-error-code", "")
        log_in = "log in with `hf auth login`, or set HF_TOKEN"
        if code == "GatedRepo":
            return f"{label}: gated: accept its conditions at {self._endpoint}/{self._name}, then {log_in}"
        if code == "RevisionNotFound":
            return f"{label}: the model is on the hub and has no revision {self._revision!r}"
        if code == "EntryNotFound":
            return f"{label}: no such file in the repository"
        if status == 401 and "Invalid" in headers.get("x-error-message", ""):
            return f"{label}: the hub does not know your token: {log_in} anew"
        if code == "RepoNotFound" or (status in {401, 404} and label == self.label(PurePosixPath())):
            return (
                f"{label}: no such file or directory here, and no such model on {self._endpoint}, or a private one "
                f"(then {log_in})"
            )
        if status == 403:
            return f"{label}: you may not read it; its owner can allow that, then {log_in}"
        return f"{label}: the hub answered {status} {headers.get('x-error-message', '')}".rstrip()


def _named(repository: str, inside: PurePosixPath, revision: str | None) -> str:
    path = "" if inside == PurePosixPath() else f"/{inside}"
    return f"{repository}{path}" + (f"@{revision}" if revision else "")


def _cached(name: HubName) -> tuple[Path, str] | None:
    """The place in the cache that a name means there, and its commit; None where there is none."""
    inside = name.inside
    sought = [inside / file for file in ("config.json", "model.safetensors", "model.safetensors.index.json")]
    for path in [inside, *sought] if inside.suffix else sought:
        found = hub_library().try_to_load_from_cache(name.repository, str(path), revision=name.revision)
        if isinstance(found, str):
            snapshot = Path(found).parents[len(path.parts) - 1]
            return snapshot / inside, snapshot.name
    return None


def _is_complete(place: Path) -> bool:
    """Whether a place in the cache has all the weights that it should."""
    if place.is_file() or (place / "model.safetensors").exists():
        return True
    try:
        index, _ = read_json(place / "model.safetensors.index.json", HEADER_LIMIT)
        return all((place / shard).exists() for shard in set(index["weight_map"].values()))
    except (DeadreckonError, KeyError, TypeError, AttributeError):
        return False


def _headers() -> dict[str, str]:
    """The token of huggingface_hub's login, where there is one and it may be sent unasked."""
    # Not huggingface_hub's own maker of headers: that one may ask the hub something first, to name its user.
    headers = {"User-Agent": f"deadreckon/{__version__}"}
    if not _constants().HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := hub_library().get_token()):
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _constants() -> Any:
    hub_library()
    return import_module("huggingface_hub.constants")
