"""Files are written whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from deadreckon.errors import UnreachableError
from deadreckon.results.sizes import parse_size
from deadreckon.results.writing import write_file


def test_a_file_is_there_only_once_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.json", []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append((path.exists(), os.fstat(number).st_size)))
    write_file(path, b"12345")
    assert seen == [(False, 5)]
    assert path.read_bytes() == b"12345"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_was_there_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.json").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnreachableError, match="No space left on device; nothing was written there"):
        write_file(tmp_path / "a.json", b"after")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.json", b"before")]


def test_files_have_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_file(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_device_is_written_to_and_stays_one():
    write_file(Path(os.devnull), b"12345")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 500 * 10**6), ("8 GiB", 8 * 2**30), ("1.5kb", 1500), ("7", 7), ("2TB", 2 * 10**12), (" 3 B ", 3)]
    + [(text, None) for text in ("much", "", "-1GB", "1PB", "1e3", "GB", "1 000")],
)
def test_sizes(text, size):
    assert parse_size(text) == size
