"""A folder of finished tasks: one JSON each, and one safetensors file where there are vectors.

``DIR/tasks/KEY.json`` is written last, whole or not at all, so a task that is there is complete. ``DIR/locks`` holds
the claims of the processes that are at work; the system lets go of a claim when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

from deadreckon.errors import InputError, UnreachableError
from deadreckon.results.saved import load_record, record_of
from deadreckon.results.task import Task
from deadreckon.results.writing import write_file


class Store:
    """Tasks by key in a folder that several processes may share."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._tasks = self.folder / "tasks"
        self._locks = self.folder / "locks"

    def prepare(self) -> None:
        """Make the folder where there is none.

        Raises:
            UnreachableError: it cannot be made.
        """
        try:
            for folder in (self._tasks, self._locks):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnreachableError(_refusal(self.folder, error)) from None

    def claim(self, key: str) -> BaseFileLock | None:
        """The right to compute a task, which ends with this process or with ``release()``.

        What a killed process left half-written of it is cleaned away.

        Args:
            key: of the task.

        Returns:
            The claim; None where another process has it.

        Raises:
            UnreachableError: the folder cannot be written to.
        """
        claim = FileLock(self._locks / f"{key}.lock", thread_local=False)
        try:
            claim.acquire(blocking=False)
            for leftover in self._tasks.glob(f".{key}.*"):
                leftover.unlink(missing_ok=True)
        except Timeout:
            return None
        except OSError as error:
            claim.release()
            raise UnreachableError(_refusal(self.folder, error)) from None
        return claim

    def get(self, key: str) -> Task | None:
        """The task of a key, done or failed; None where there is none.

        Raises:
            InputError: what is there is no task, or one that a newer version made.
            UnreachableError: it cannot be read.
        """  # noqa: DOC201
        path = self._tasks / f"{key}.json"
        return _load(path) if path.exists() else None

    def has(self, key: str) -> bool:
        """Whether a task is there and done; a failed one is there to be tried again."""
        task = self.get(key)
        return task is not None and task.status == "done"

    def write(self, task: Task, vectors: Mapping[str, Any]) -> None:
        """Keep a task. One of the same key is replaced.

        Args:
            task: done or failed.
            vectors: named arrays that belong to it, may be none.

        Raises:
            UnreachableError: the folder is read-only or full; then the store is as it was before.
        """
        beside = self._tasks / f"{task.key}.safetensors"
        try:
            if vectors:
                from safetensors.numpy import save

                arrays = {name: np.ascontiguousarray(array) for name, array in vectors.items()}
                write_file(beside, save(arrays, {"schema": task.schema, "key": task.key}))
            write_file(self._tasks / f"{task.key}.json", (task.to_json() + "\n").encode())
        except UnreachableError:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise

    def drop(self, key: str) -> None:
        """Remove a task, where it is there.

        Args:
            key: of the task.

        Raises:
            UnreachableError: the folder cannot be written to.
        """
        try:
            for suffix in ("json", "safetensors"):
                (self._tasks / f"{key}.{suffix}").unlink(missing_ok=True)
        except OSError as error:
            raise UnreachableError(_refusal(self.folder, error)) from None

    def tasks(self) -> list[Task]:
        """Every task, sorted by model, step, revision, verb, seed, options and key.

        Returns:
            The tasks; what killed runs left unfinished is not among them.

        Raises:
            InputError: a file is no task, or one that a newer version made.
            UnreachableError: there is no store in the folder.
        """
        if not self._tasks.is_dir():
            raise UnreachableError(f"{self.folder}: no folder of results; name one that deadreckon sweep made")
        return sorted((_load(path) for path in self._tasks.glob("[!.]*.json")), key=_order)

    def vectors(self, key: str) -> dict[str, Any]:
        """The arrays of a task; none where it has none."""
        path = self._tasks / f"{key}.safetensors"
        if not path.exists():
            return {}
        from safetensors.numpy import load_file

        return load_file(path)


def _load(path: Path) -> Task:
    task = load_record(path)
    if not isinstance(task, Task):
        raise InputError(f"{path}: a {task.schema}, which no store holds; move it elsewhere")
    if task.result is not None:
        try:
            record_of(task.result)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return task


def _order(task: Task) -> tuple[Any, ...]:
    step, seed = -1 if task.step is None else task.step, task.options.get("seed", 0)
    return task.model, step, task.revision or "", task.verb, seed, str(sorted(task.options.items())), task.key


def _refusal(folder: Path, error: OSError) -> str:
    return f"{folder}: {error.strerror}; results cannot be kept there, name a writable folder"
