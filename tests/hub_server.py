"""A small hub on this machine: the part of the hub's file API that reading and downloading use, with faults on request.

Files of Git LFS (weights) are redirected to another host, as the hub does; everything that is asked is logged with the
bytes that were sent in answer, so that a test can count them.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".gguf", ".bin")
TOKEN = "hf_right"
_CHUNK = 1 << 16


@dataclass
class Asked:
    """One request as the server saw it; `sent` counts the bytes of the answer's body."""

    host: str
    method: str
    path: str
    range: str | None
    authorization: str | None
    at: float = field(default_factory=time.perf_counter)
    status: int = 0
    sent: int = 0


@dataclass
class Repository:
    """Files by path: bytes, or a (sparse) file on disk."""

    files: Mapping[str, bytes | Path]
    private: bool = False
    gated: bool = False
    revisions: tuple[str, ...] = ("main",)
    list_sizes: bool = True

    @property
    def commit(self) -> str:
        return hashlib.sha1("\0".join(sorted(self.files)).encode()).hexdigest()

    def size(self, name: str) -> int:
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def read(self, name: str, start: int, count: int) -> bytes:
        content = self.files[name]
        if isinstance(content, bytes):
            return content[start : start + count]
        with content.open("rb") as file:
            file.seek(start)
            return file.read(count)

    def etag(self, name: str) -> str:
        return hashlib.sha256(f"{name}{self.size(name)}".encode()).hexdigest()


@dataclass
class Fault:
    """What goes wrong on the next `times` requests whose host and path match."""

    match: str
    act: Callable[[_Handler, Repository, str], None]
    times: int = 1


@dataclass
class HubServer:
    """Two listeners: the hub, and the host that it redirects weights to."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    latency: float = 0.0
    endpoint: str = ""
    storage: str = ""

    def fail(self, match: str, act: Callable[[_Handler, Repository, str], None], times: int = 1) -> None:
        """Have the next `times` requests whose ``host path`` matches a pattern go wrong."""
        self.faults.append(Fault(match, act, times))

    def fault(self, what: str) -> Fault | None:
        found = next((f for f in self.faults if f.times > 0 and re.search(f.match, what)), None)
        if found is not None:
            found.times -= 1
        return found

    @property
    def sent(self) -> int:
        return sum(asked.sent for asked in self.asked)

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        listeners = []
        for host, name in (("127.0.0.1", "hub"), ("127.0.0.1", "storage")):
            handler = type("Handler", (_Handler,), {"hub": self, "role": name})
            listener = ThreadingHTTPServer((host, 0), handler)
            listener.daemon_threads = True
            threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
            listeners.append(listener)
        self.endpoint = f"http://127.0.0.1:{listeners[0].server_port}"
        self.storage = f"http://localhost:{listeners[1].server_port}"
        try:
            yield self
        finally:
            for listener in listeners:
                listener.shutdown()
                listener.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    role: str
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.asked = Asked(
            self.role, self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")
        )
        self.hub.asked.append(self.asked)
        if self.hub.latency:
            time.sleep(self.hub.latency)
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^?]+))?", path):
            self._api(*match.groups())
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif match := re.fullmatch(r"/(?:files)/(.+?)//(.+)", path):
            self._file(self.hub.repositories[match[1]], match[2])
        else:
            self.answer(404)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.send(body)

    def send(self, body: bytes) -> None:
        try:
            self.wfile.write(body)
            self.wfile.flush()
            self.asked.sent += len(body)
        except OSError:  # the client went away
            self.close_connection = True

    def _refused(self, name: str, revision: str) -> bool:
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            self.answer(404 if known else 401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif revision not in (*repository.revisions, repository.commit):
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        else:
            return False
        return True

    def _api(self, name: str, kind: str | None, revision: str | None) -> None:
        if self._refused(name, revision or "main"):
            return
        repository = self.hub.repositories[name]
        if fault := self.hub.fault(f"{self.role} {self.path}"):
            fault.act(self, repository, "")
            return
        if kind == "tree":
            entries = [
                {"type": "file", "path": f, "size": repository.size(f), "oid": repository.etag(f)[:40]}
                for f in repository.files
            ]
            self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
            return
        siblings = [{"rfilename": f} for f in repository.files]
        if "blobs" in self.path and repository.list_sizes:
            siblings = [{**s, "size": repository.size(s["rfilename"])} for s in siblings]
        body = {"_id": "0", "id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "tags": []}
        self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def _resolve(self, name: str, revision: str, file: str) -> None:
        if self._refused(name, revision):
            return
        repository = self.hub.repositories[name]
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message=f"Access to model {name} is restricted")
        elif file not in repository.files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        elif file.endswith(LFS):
            self.answer(
                302,
                Location=f"{self.hub.storage}/files/{name}//{file}?signature=secret",
                X_Repo_Commit=repository.commit,
                X_Linked_Size=str(repository.size(file)),
                X_Linked_ETag=f'"{repository.etag(file)}"',
            )
        else:
            self._file(repository, file, X_Repo_Commit=repository.commit)

    def _file(self, repository: Repository, file: str, **extra: str) -> None:
        if fault := self.hub.fault(f"{self.role} {self.path}"):
            fault.act(self, repository, file)
            return
        if file not in repository.files:
            self.answer(404)
            return
        size = repository.size(file)
        extra |= {"ETag": f'"{repository.etag(file)}"', "Accept_Ranges": "bytes"}
        start, stop = self.wanted(size)
        if start >= size > 0:
            self.answer(416, Content_Range=f"bytes */{size}")
            return
        status = 200
        if self.headers.get("Range"):
            status, extra["Content_Range"] = 206, f"bytes {start}-{stop - 1}/{size}"
        self.begin(status, Content_Length=str(stop - start), **extra)
        self.body(repository, file, start, stop)

    def wanted(self, size: int) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "bytes=0-")
        assert match is not None
        return int(match[1]), min(int(match[2] or size - 1) + 1, size)

    def begin(self, status: int, **headers: str) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def body(self, repository: Repository, file: str, start: int, stop: int) -> None:
        while start < stop and self.command != "HEAD" and not self.close_connection:
            raw = repository.read(file, start, min(_CHUNK, stop - start))
            self.send(raw)
            start += len(raw)


def status(code: int, **headers: str) -> Callable[[_Handler, Repository, str], None]:
    """An answer without success."""
    return lambda handler, repository, file: handler.answer(code, b"busy", **headers)


def drop(after: int) -> Callable[[_Handler, Repository, str], None]:
    """A right answer whose connection breaks after some bytes."""

    def act(handler: _Handler, repository: Repository, file: str) -> None:
        size = repository.size(file)
        start, stop = handler.wanted(size)
        status = 206 if handler.headers.get("Range") else 200
        handler.begin(status, Content_Length=str(stop - start), Content_Range=f"bytes {start}-{stop - 1}/{size}")
        handler.body(repository, file, start, min(start + after, stop))
        handler.close_connection = True

    return act


def short(missing: int) -> Callable[[_Handler, Repository, str], None]:
    """An answer that promises a range and holds less of it, well-formed otherwise."""

    def act(handler: _Handler, repository: Repository, file: str) -> None:
        size = repository.size(file)
        start, stop = handler.wanted(size)
        handler.begin(206, Content_Length=str(stop - start - missing), Content_Range=f"bytes {start}-{stop - 1}/{size}")
        handler.body(repository, file, start, stop - missing)

    return act


def shifted(by: int) -> Callable[[_Handler, Repository, str], None]:
    """Another range than the one that was asked for."""

    def act(handler: _Handler, repository: Repository, file: str) -> None:
        size = repository.size(file)
        start, stop = handler.wanted(size)
        start, stop = start + by, stop + by
        handler.begin(206, Content_Length=str(stop - start), Content_Range=f"bytes {start}-{stop - 1}/{size}")
        handler.body(repository, file, start, stop)

    return act


def whole(handler: _Handler, repository: Repository, file: str) -> None:
    """The whole file, whatever range was asked for."""
    size = repository.size(file)
    handler.begin(200, Content_Length=str(size))
    handler.body(repository, file, 0, size)


def compressed(handler: _Handler, repository: Repository, file: str) -> None:
    """A body in an encoding that was not asked for."""
    size = repository.size(file)
    start, stop = handler.wanted(size)
    handler.begin(206, Content_Encoding="gzip", Content_Length="2", Content_Range=f"bytes {start}-{stop - 1}/{size}")
    handler.send(b"\x1f\x8b")


def trickle(pause: float, step: int = 1) -> Callable[[_Handler, Repository, str], None]:
    """A right answer, a few bytes at a time."""

    def act(handler: _Handler, repository: Repository, file: str) -> None:
        size = repository.size(file)
        start, stop = handler.wanted(size)
        handler.begin(206, Content_Length=str(stop - start), Content_Range=f"bytes {start}-{stop - 1}/{size}")
        for at in range(start, stop, step):
            handler.send(repository.read(file, at, min(step, stop - at)))
            if handler.close_connection:
                return
            time.sleep(pause)

    return act


def silent(seconds: float) -> Callable[[_Handler, Repository, str], None]:
    """No answer at all."""

    def act(handler: _Handler, repository: Repository, file: str) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return act


def endless(handler: _Handler, repository: Repository, file: str) -> None:
    """A body without a length that goes on until the client goes away, at most 256 MB."""
    handler.begin(200, Connection="close")
    handler.close_connection = False
    for _ in range(1 << 12):
        handler.send(b" " * _CHUNK)
        if handler.close_connection:
            return
    handler.close_connection = True


def to(url: str) -> Callable[[_Handler, Repository, str], None]:
    """A redirect."""
    return lambda handler, repository, file: handler.answer(302, Location=url)


def write_shards(
    folder: Path,
    config: Mapping[str, object],
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, bytes],
    shard_bytes: int,
) -> dict[str, Path]:
    """A published model in bfloat16 as sparse files: every header and the bytes of `values` are real.

    Tensors lie in the order that the safetensors library writes (by name) and shards are filled in that order, as
    transformers does. Returns the repository's files.
    """
    shards: list[list[str]] = [[]]
    room = shard_bytes
    sizes = {name: 2 * _product(shape) for name, shape in shapes.items()}
    for name in shapes:
        if shards[-1] and sizes[name] > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= sizes[name]
    files: dict[str, Path] = {}
    weight_map = {}
    for number, names in enumerate(shards):
        file_name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in sorted(names):
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, at + sizes[name]]}
            weight_map[name], at = file_name, at + sizes[name]
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        files[file_name] = path = folder / file_name
        with path.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for name in names:
                if name in values:
                    assert len(values[name]) == sizes[name]
                    file.seek(8 + len(raw) + header[name]["data_offsets"][0])  # type: ignore[index]
                    file.write(values[name])
            file.truncate(8 + len(raw) + at)
    texts = {
        "config.json": config,
        "model.safetensors.index.json": {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": dict(sorted(weight_map.items())),
        },
    }
    for file_name, content in texts.items():
        files[file_name] = folder / file_name
        files[file_name].write_text(json.dumps(content, indent=2))
    return files


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size
