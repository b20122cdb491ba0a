"""Files of a user's folder or archive: their names, their bytes, and which of them belong together.

Archives are read member by member, never extracted. A file that is missing, damaged or not what it should be is a
StorageError of one line that names it; a file that is not read is told to an `account.Account`.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import ConsistencyError, StorageError
from ..files import bounds
from .account import Account

IMAGE_TYPES = {"png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "tif", "tiff", "gif"}
BESIDE = {"cls", "txt", "json"}  # types of what a webdataset has beside its images
HIDDEN = "hidden"
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
SPLIT = "split it into several archives, which a pattern names"


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Any exception inside becomes a StorageError of one line: readers of damaged bytes raise of many kinds."""
    try:
        yield
    except ConsistencyError:
        raise
    except Exception as error:
        text = " ".join(str(error).split(" <")[0].split()) or type(error).__name__
        raise StorageError(f"{where}: cannot be read ({text}); replace or remove it") from error


class _Member(tarfile.TarInfo):
    """A damaged or missing header inside a tar is an error, where tarfile takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            member = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from error
        member._check()  # once more: pax headers may have made it sparse, or of another size
        return member

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._check()
        return super()._proc_member(archive)

    def _check(self) -> None:
        if self.size < 0:  # the next member would be an earlier one
            raise tarfile.ReadError(f"{self.name}: its size is {self.size}, allowed: 0 and more")
        if self.issparse() or self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{self.name}: a sparse member, whose zeros are not stored; allowed: whole ones")


class _TarBytes:
    """The bytes of a tar as `tarfile` reads them, which itself takes headers of any length, and skips to any place.

    Args:
        file: open, and unpacked where `packed` is the size of the archive that is.
    """

    mode = "rb"

    def __init__(self, archive: Path, file: BinaryIO | gzip.GzipFile, packed: int | None):
        self.name, self.tell = str(archive), file.tell
        self.most = None if packed is None else bounds.UNPACKED + bounds.RATIO * packed
        self.allowed = bounds.MEMBER_HEADER  # bytes that may be read before it is set anew
        self._file = file

    def read(self, size: int) -> bytes:
        self.allowed -= size
        if self.allowed < 0:
            most = bounds.shown(bounds.MEMBER_HEADER)
            raise StorageError(f"{self.name}: a member with headers of more than {most}, allowed: at most that")
        return self._read(size)

    def seek(self, position: int) -> None:
        if self.most is None:
            self._file.seek(position)
        while self.tell() < position and self._read(min(position - self.tell(), 1 << 20)):
            pass

    def finish(self) -> None:
        """Unpack to the end, where gzip checks its sum."""
        while self.most is not None and self._read(1 << 20):
            pass

    def _read(self, size: int) -> bytes:
        content = self._file.read(size)
        if self.most is not None and self.tell() > self.most:
            raise _unpacks_to(self.name, self.tell(), self.most)
        return content


class _Directory(io.BufferedReader):
    """A zip's file. `zipfile` reads the list of its members as one piece, and makes an object of each of them."""

    listing = True

    def read(self, size: int | None = -1) -> bytes:
        if self.listing and size is not None:
            bounds.check_size(f"{self.name}: the list of its members", size, bounds.NAMES)
        content = super().read(size)
        if self.listing and (count := content.count(b"PK\1\2")) > bounds.MEMBERS:
            raise _too_many(self.name, count)
        return content


def _unpacks_to(archive: str | Path, size: int, most: int) -> StorageError:
    allowed = f"{bounds.shown(bounds.UNPACKED)} and {bounds.RATIO} times its own size"
    return StorageError(
        f"{archive}: unpacks to {bounds.shown(size)} or more, allowed: {bounds.shown(most)} ({allowed})"
    )


def _too_many(archive: str | Path, count: int) -> StorageError:
    return StorageError(f"{archive}: {count:,} members or more, allowed: at most {bounds.MEMBERS:,}; {SPLIT}")


def most_of(name: str) -> int:
    """Bytes that a file of this name may have."""
    kind = name.rpartition(".")[2].lower()  # faster than `kind_of`
    return bounds.LABEL if kind in BESIDE else bounds.TABLE if kind in ("csv", "jsonl") else bounds.IMAGE


def is_tar(archive: Path) -> bool:
    """Whether a path that `archives` gave is a tar."""
    return not archive.is_dir() and archive.suffix.lower() != ".zip"


def where(archive: Path, name: str) -> str:
    """A file's place, for messages."""
    return str(archive / name) if archive.is_dir() else f"{archive}: {name}"


def short(archive: Path, name: str) -> str:
    """A file's place, for an account, which says where the archive is."""
    return name if archive.is_dir() else f"{archive.name}: {name}"


def kind_of(name: str) -> str:
    """A file's type: what follows the last dot of its name, in lower case; empty without one."""
    return PurePosixPath(name).suffix[1:].lower()


def of_type(name: str) -> str:
    """Why a file is not read whose type is not."""
    return f"of type .{kind_of(name)}" if kind_of(name) else "without a type"


def archives(source: str) -> list[Path]:
    """The folder or archive at `source`, or the sorted archives of a pattern.

    Raises:
        StorageError: there is none, or a file that is no archive.
    """
    path = Path(source).expanduser()
    files = [path] if path.exists() else [Path(match) for match in sorted(glob(str(path), recursive=True))]
    wrong = [path for path in files if not path.is_dir() and not path.name.lower().endswith(ARCHIVES)]
    if wrong or not files:
        allowed = f"a folder, {', '.join(ARCHIVES)}, or a pattern of such archives"
        raise StorageError(f"{wrong[0] if wrong else source}: no such folder or archive; allowed: {allowed}")
    return files


def members(
    archive: Path, wanted: Callable[[str], bool], account: Account | None = None
) -> Iterator[tuple[str, bytes | None]]:
    """Names of the files in a folder or zip (sorted by path) or a tar (in its order), with their bytes where wanted.

    Links in a folder are followed. Hidden files, links in archives and names that lead out of the archive are passed
    over.

    Raises:
        StorageError: damaged, a name that occurs twice in an archive, a link that leads nowhere, what is larger than
            `bounds` allows.
    """
    account = account or Account(str(archive))
    with reading(archive):
        if archive.is_dir():
            for name in sorted(_files(archive, "", frozenset(), account, []), key=PurePosixPath):
                yield name, bounds.read(archive / name, most_of(name)) if wanted(name) else None
        else:
            labels, read = 0, _of_tar if is_tar(archive) else _of_zip
            for name, data in read(archive, wanted, _Names(archive, account)):
                labels += len(data) if data and most_of(name) == bounds.LABEL else 0
                if labels > bounds.LABELS:
                    most = bounds.shown(bounds.LABELS)
                    raise StorageError(f"{archive}: more than {most} of labels and captions, allowed: that; {SPLIT}")
                yield name, data


def _of_tar(archive: Path, wanted: Callable[[str], bool], names: _Names) -> Iterator[tuple[str, bytes | None]]:
    packed = archive.suffix.lower() != ".tar"
    with bounds.regular(archive) as raw, gzip.open(raw) if packed else raw as unpacked:
        content = _TarBytes(archive, unpacked, os.fstat(raw.fileno()).st_size if packed else None)
        with tarfile.open(mode="r:", fileobj=content, tarinfo=_Member) as file:
            while (member := file.next()) is not None:
                file.members.clear()  # tarfile would keep every one
                linked = "a link in an archive" if member.issym() or member.islnk() else "not a file"
                if not member.isdir() and (name := names.accept(member.name, "" if member.isfile() else linked)):
                    data = None
                    if wanted(name):
                        bounds.check_size(f"{archive}: {name}", member.size, most_of(name))
                        content.allowed = member.size
                        data = file.extractfile(member).read()
                    yield name, data
                content.allowed = bounds.MEMBER_HEADER
            content.finish()


def _of_zip(archive: Path, wanted: Callable[[str], bool], names: _Names) -> Iterator[tuple[str, bytes | None]]:
    with _Directory(bounds.regular(archive).detach()) as content, zipfile.ZipFile(content) as file:
        content.listing, unpacked = False, 0
        most = bounds.UNPACKED + bounds.RATIO * os.fstat(content.fileno()).st_size
        for entry in sorted(file.infolist(), key=lambda entry: PurePosixPath(entry.filename).parts):
            why = "a link in an archive" if stat.S_ISLNK(entry.external_attr >> 16) else ""
            if not entry.is_dir() and (name := names.accept(entry.filename, why)):
                if not wanted(name):
                    yield name, None
                    continue
                bounds.check_size(f"{archive}: {name}", entry.file_size, most_of(name))
                unpacked += entry.file_size
                if unpacked > most:
                    raise _unpacks_to(archive, unpacked, most)
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # they unpack without a bound
                    how = zipfile.compressor_names.get(entry.compress_type, entry.compress_type)
                    raise ValueError(f"{name}: compression {how}, allowed: store, deflate")
                with file.open(entry) as stream:
                    yield name, stream.read(entry.file_size + 1)  # no more than declared, whatever it unpacks to


class _Names:
    """The names of an archive's members, each accepted once."""

    def __init__(self, archive: Path, account: Account):
        self.archive, self.account = archive, account
        self.seen: set[str] = set()
        self.count = self.size = 0

    def accept(self, name: str, why: str) -> str:
        """A member's name; empty where it is passed over, with the reason `why` or one that the name gives."""
        self.count, self.size = self.count + 1, self.size + len(name)
        if self.count > bounds.MEMBERS:
            raise _too_many(self.archive, self.count)
        bounds.check_size(f"{self.archive}: the names of its members", self.size, bounds.NAMES)
        name = str(PurePosixPath(name))
        parts = PurePosixPath(name).parts
        if not why and (PurePosixPath(name).is_absolute() or ".." in parts):
            why = "a name that leads out of the archive"
        if not why and any(map(_hidden, parts)):
            why = HIDDEN
        if why:
            self.account.pass_over(short(self.archive, name), why)
            return ""
        if name in self.seen:
            raise StorageError(f"{where(self.archive, name)}: is in the archive twice, allowed: once")
        self.seen.add(name)
        return name


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _files(
    folder: Path,
    below: str,
    above: frozenset[tuple[int, int]],
    account: Account,
    linked: list[str],
    through: bool = False,
) -> list[str]:
    """Names of the files in the folder `below` of `folder` and deeper, relative to `folder`; links are followed.

    Args:
        above: device and inode of the folders on the way here, so that a link to one of them ends.
        linked: the folders so far that are reached through links, which are counted.
        through: whether this one is.
    """
    directory = folder / below
    names, status = [], directory.stat()
    if (itself := (status.st_dev, status.st_ino)) in above:
        account.pass_over(f"{below}/", "a link to a folder that holds it")
        return []
    with os.scandir(directory) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        name = f"{below}/{entry.name}" if below else entry.name
        if _hidden(entry.name):
            account.pass_over(name + "/" * entry.is_dir(), HIDDEN)
        elif entry.is_dir():
            if behind := through or entry.is_symlink():
                linked.append(name)
                bounds.check_linked(folder, len(linked))
            names += _files(folder, name, above | {itself}, account, linked, behind)
        elif entry.is_file():
            names.append(name)
        elif not os.path.exists(entry.path):
            raise StorageError(f"{folder / name}: is a link that leads nowhere; restore what it names, or remove it")
        else:
            account.pass_over(name, "not a file")
    return names


def together(
    archive: Path, listed: dict[str, bytes | None], used: set[str], account: Account
) -> dict[str, dict[str, bytes | None]]:
    """Images, in the order of the archive, each with what a tar has beside it.

    In a tar, members of the types `BESIDE` belong to the image whose name is theirs but for the type (a.b.png and
    a.b.txt), or as in a webdataset to the one whose name begins as theirs up to the first dot (a.input.png and a.txt).
    Of several such images the one without more dots is the sample's (a.png, not a.mask.png). An image that has
    nothing beside it is one by itself, whatever dots its name has, as in folders and zips.

    Args:
        listed: names of the files → bytes of those that will be asked for.
        used: types of `BESIDE` that will be asked for; the others are told to the account.

    Returns:
        name of an image → type → bytes.

    Raises:
        StorageError: several images with the same file beside them, or two files of one type.
    """
    beside: dict[str, dict[str, bytes | None]] = {}
    for name, data in listed.items() if is_tar(archive) else ():
        if (kind := kind_of(name)) in BESIDE and kind in beside.setdefault(_stem(name), {}):
            raise StorageError(f"{where(archive, name)}: its sample has two members of type .{kind}, allowed: one")
        if kind in BESIDE:
            beside[_stem(name)][kind] = data
    images = [name for name in listed if kind_of(name) in IMAGE_TYPES]
    owners = {name: next((stem for stem in (_stem(name), _key(name)) if stem in beside), "") for name in images}
    sharing: dict[str, list[str]] = {}
    for name, owner in owners.items():
        sharing.setdefault(owner, []).append(name)
    extra = set()
    for owner, names in sharing.items():
        exact = [name for name in names if _stem(name) == owner] or names
        if owner and len(exact) > 1:
            raise StorageError(f"{where(archive, exact[0])}: its sample has several images, allowed: one")
        extra |= set(names) - set(exact) if owner else set()
    for name in listed:
        if name in extra:
            account.pass_over(short(archive, name), "a further image of a sample")
        elif name not in owners and not (is_tar(archive) and kind_of(name) in used):
            account.pass_over(short(archive, name), of_type(name))
        elif name not in owners and _stem(name) not in sharing:
            account.pass_over(short(archive, name), f"{of_type(name)} without an image of its name")
    files = {owner: {kind: data for kind, data in members.items() if kind in used} for owner, members in beside.items()}
    return {name: files.get(owner, {}) for name, owner in owners.items() if name not in extra}


def _stem(name: str) -> str:
    """A name without its type."""
    return str(PurePosixPath(name).with_suffix(""))


def _key(name: str) -> str:
    """A name up to the first dot of its last part, which names a sample of a webdataset."""
    return str(PurePosixPath(name).with_name(PurePosixPath(name).name.partition(".")[0]))
