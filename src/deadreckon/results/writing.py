"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from deadreckon.errors import UnreachableError


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever happens meanwhile: nobody ever sees half of it.

    Args:
        path: where to. A device or a pipe is written to, never replaced; a file that is there is replaced.
        data: all of it.

    Raises:
        UnreachableError: it cannot be written; what was there before is there still.
    """
    temporary = None
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a name must not come to stand for bytes that a power cut then takes
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise UnreachableError(f"{path}: {error.strerror}; nothing was written there, name a writable place") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
