"""File systems that refuse what others do: the same files are written and read, in another way."""

import errno
import mmap
import os
import stat

import numpy as np
import pytest
import safetensors
import torch
from consistency.errors import StorageError
from consistency.files import filesystems, storage
from consistency.files.writers import tensor_file

REFUSED = [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EISDIR]


@pytest.fixture
def fsync(monkeypatch):
    """Have fsync fail: for folders, or for files."""

    def fail(number, folders):
        real = os.fsync

        def refuse(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", refuse)

    return fail


def write_all(folder):
    storage.write_json(folder / "a.json", {"new": 1})
    with storage.atomic(folder / "b") as temporary:
        (temporary / "c").mkdir(parents=True)
        (temporary / "c" / "d").write_text("d")


@pytest.mark.parametrize("number", REFUSED)
def test_folders_that_cannot_be_fsynced(tmp_path, fsync, number):
    fsync(number, folders=True)
    write_all(tmp_path)
    assert storage.read_json(tmp_path / "a.json") == {"new": 1}
    assert (tmp_path / "b" / "c" / "d").read_text() == "d"


@pytest.mark.parametrize(
    ("number", "folders"), [(errno.EIO, True), (errno.ENOSPC, True), *((n, False) for n in (*REFUSED, errno.EIO))]
)
def test_what_did_not_reach_the_disk_is_an_error(tmp_path, fsync, number, folders):
    storage.write_json(tmp_path / "a.json", {"old": 1})
    fsync(number, folders)
    with pytest.raises(StorageError, match="a.json: (cannot be written|disk full while writing)"):
        write_all(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a.json"]
    if not folders:  # else it is in its place, and the disk may lose it
        assert storage.read_json(tmp_path / "a.json") == {"old": 1}


def rows(path):
    with tensor_file(path, {"x": (torch.float32, (5, 2)), "k": (torch.int64, (5,))}) as file:
        file["x"][:] = torch.arange(10.0).reshape(5, 2)
        file["k"][:] = torch.arange(5)
        file.metadata["count"] = 5
    return path.read_bytes()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_no_place_is_reserved(tmp_path, monkeypatch, number):
    expected = rows(tmp_path / "a")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert rows(tmp_path / "b") == expected


def test_a_full_disk_is_told_where_no_place_is_reserved(small_disk, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with (
        pytest.raises(StorageError, match="disk full"),
        tensor_file(small_disk / "a", {"x": (torch.uint8, (1 << 21,))}),
    ):
        raise AssertionError("nothing is computed for a full disk")
    assert not list(small_disk.iterdir())


def test_files_that_cannot_be_mapped_are_written(tmp_path, monkeypatch, caplog):
    expected, real = rows(tmp_path / "a"), mmap.mmap

    def refuse(descriptor, size):
        if descriptor >= 0:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return real(descriptor, size)

    monkeypatch.setattr(filesystems.mmap, "mmap", refuse)
    assert rows(tmp_path / "b") == expected
    assert "the file system maps no files into memory" in caplog.text


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_files_that_cannot_be_mapped_are_read(tmp_path, monkeypatch, framework):
    path = tmp_path / "t.safetensors"
    saved = {"x": torch.arange(6.0).reshape(3, 2), "k": torch.arange(3)}
    storage.save_tensors(path, saved, {"a": 1})
    ways = [{}, {"rows": 2}, {"names": ["k"]}]
    expected = [storage.load_tensors(path, framework=framework, **way) for way in ways]

    def refuse(*_, **__):
        raise OSError("No such device (os error 19)")  # as it comes from Rust, without a number

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    for way, (tensors, metadata) in zip(ways, expected, strict=True):
        found, told = storage.load_tensors(path, framework=framework, **way)
        assert told == metadata == {"a": 1}
        assert found.keys() == tensors.keys()
        for name, value in found.items():
            assert type(value) is type(tensors[name])
            assert np.array_equal(value, tensors[name])
    with pytest.raises(StorageError, match=r"holds no tensor 'y'; it has \['k', 'x'\]"):
        storage.load_tensors(path, ["y"], framework=framework)
