"""Readers of image data sets: uint8 images (n, C, H, W) with int64 labels (n,), or images with captions.

NumPy, Pillow and the standard library only. Archives are read member by member, never extracted. A file that is
missing, damaged or not what it should be is a StorageError of one line that names it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np

from .errors import ConfigError, ConsistencyError, MismatchError, StorageError
from .storage import sha256
from .streams import generator

Split = tuple[np.ndarray, np.ndarray]

FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
# Of the decompressed bytes: the headers of the .gz files differ between Debian and upstream.
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# Of upstream's .gz files (TensorFlow Datasets' url_checksums/fashion_mnist.txt).
FASHION_GZ = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
CIFAR10_FILE = "cifar-10-binary.tar.gz"
CIFAR10_URL = f"https://www.cs.toronto.edu/~kriz/{CIFAR10_FILE}"
# TensorFlow Datasets' url_checksums/cifar10.txt.
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_FILES = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
IMAGENET_URL = "https://image-net.org/download-images"
IMAGENET32_FILES = {
    "train": ("Imagenet32_train_npz", [f"train_data_batch_{k}.npz" for k in range(1, 11)]),
    "test": ("Imagenet32_val_npz", ["val_data.npz"]),
}
IMAGE_TYPES = {"png", "jpg", "jpeg", "webp", "bmp"}
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
METADATA = {"metadata.csv", "metadata.jsonl"}


@contextmanager
def _reading(where: str | Path) -> Iterator[None]:
    """Any exception inside becomes a StorageError of one line: readers of damaged bytes raise of many kinds."""
    try:
        yield
    except ConsistencyError:
        raise
    except Exception as error:
        text = " ".join(str(error).split(" <")[0].split()) or type(error).__name__
        raise StorageError(f"{where}: cannot be read ({text}); replace or remove it") from error


def _find(places: list[Path], advice: str) -> Path:
    if found := [path for path in places if path.is_file()]:
        return found[0]
    raise StorageError(f"{places[0]}: no such file; {advice}")


def _check(found: str, expected: str, where: Path) -> None:
    if found != expected:
        raise StorageError(f"{where}: damaged: sha256 is {found[:12]}…, the official one {expected[:12]}…; replace it")


def read_idx(data: bytes, where: str | Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes: uint8, 1 to 4 dimensions, read-only.

    Raises:
        StorageError: a wrong magic number, no such dimensions, or more or fewer bytes than they say.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
        raise StorageError(f"{where}: begins with {data[:4].hex()!r}; allowed: IDX of bytes, 00000801 to 00000804")
    start = 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[k : k + 4], "big") for k in range(4, start, 4))
    if 0 in shape or len(data) != start + math.prod(shape):
        raise StorageError(f"{where}: {len(data)} bytes do not hold {'×'.join(map(str, shape))} values of one byte")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def needs(kind: str, folder: str | None) -> list[dict[str, str]]:
    """What reading a data set downloads unless it is cached: url, name, sha256 of each file (`downloads.fetch`)."""
    if kind == "fashion" and folder is None and not FASHION_DEBIAN.is_dir():
        return [
            {"url": f"{FASHION_URL}/{name}.gz", "name": f"fashion-mnist-{name}.gz", "sha256": digest}
            for name, digest in FASHION_GZ.items()
        ]
    if kind == "cifar10" and folder is None:
        return [{"url": CIFAR10_URL, "name": CIFAR10_FILE, "sha256": CIFAR10_SHA256}]
    return []


def fashion(folder: str | None = None) -> dict[str, Split]:
    """Fashion-MNIST, 60,000 + 10,000 grey images, zero-padded from 28 to 32: train and test, (n, 1, 32, 32).

    Args:
        folder: of the four IDX files, gzipped or not; by default Debian's package, else the official address.

    Raises:
        ConsistencyError: a file is missing, cannot be downloaded, or is not the official one when decompressed.
    """
    from . import downloads

    arrays, place = [], FASHION_DEBIAN if folder is None else Path(folder).expanduser()
    fetched = {file["name"]: file for file in needs("fashion", folder)}
    for name, expected in FASHION_SHA256.items():
        if fetched:
            path = downloads.fetch(*fetched[f"fashion-mnist-{name}.gz"].values())
        else:
            path = _find([place / f"{name}.gz", place / name], f"get it from {FASHION_URL}/{name}.gz")
        with _reading(path):
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        _check(hashlib.sha256(data).hexdigest(), expected, path)
        arrays.append(read_idx(data, path))
    padded = [np.pad(images[:, None], ((0, 0), (0, 0), (2, 2), (2, 2))) for images in arrays[::2]]
    labels = [values.astype(np.int64) for values in arrays[1::2]]
    return dict(zip(("train", "test"), zip(padded, labels, strict=True), strict=True))


def cifar10(folder: str | None = None) -> dict[str, Split]:
    """CIFAR-10, 50,000 + 10,000 images: train and test, (n, 3, 32, 32), from the binary archive (never the pickles).

    Args:
        folder: that holds cifar-10-binary.tar.gz; by default the cache, filled from the official address.

    Raises:
        ConsistencyError: the archive is missing, cannot be downloaded, or is not the official one.
    """
    from . import downloads

    if fetched := needs("cifar10", folder):
        path = downloads.fetch(*fetched[0].values())
    else:
        path = _find([Path(folder).expanduser() / CIFAR10_FILE], f"get it from {CIFAR10_URL}")
    _check(sha256(path), CIFAR10_SHA256, path)
    files = dict(_members(path, lambda name: name.endswith(".bin")))
    parts = {}
    for part, names in CIFAR10_FILES.items():
        data = [files.get(f"cifar-10-batches-bin/{name}") or b"?" for name in names]
        if wrong := [name for name, records in zip(names, data, strict=True) if len(records) % 3073]:
            raise StorageError(f"{path}: holds no {wrong[0]} of whole records of 3,073 bytes")
        records = np.frombuffer(b"".join(data), np.uint8).reshape(-1, 3073)
        if records[:, 0].max() > 9:
            raise StorageError(f"{path}: {part}: label {records[:, 0].max()}, allowed: 0 to 9")
        parts[part] = (records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))
    return parts


def _npz(path: Path, name: str) -> np.ndarray:
    with _reading(path), np.load(path, allow_pickle=False) as file:
        return file[name]


def imagenet32(folder: str) -> dict[str, Split]:
    """ImageNet at 32×32, 1,281,167 + 50,000 images: train and test, (n, 3, 32, 32), labels from 0; 5 GB of memory.

    Args:
        folder: of train_data_batch_1.npz to _10.npz and val_data.npz, or of the unpacked archives that hold them,
            placed by hand: image-net.org asks for registration.

    Raises:
        StorageError: a file is missing or is not what it should be.
    """
    place, parts = Path(folder).expanduser(), {}
    for part, (archive, names) in IMAGENET32_FILES.items():
        advice = f"get {archive}.zip from {IMAGENET_URL} (registration needed) and unpack it in {place}"
        files = [_find([place / name, place / archive / name], advice) for name in names]
        labels = [_npz(path, "labels").ravel() for path in files]
        images, start = np.empty((sum(map(len, labels)), 3072), np.uint8), 0
        for path, classes in zip(files, labels, strict=True):
            data = _npz(path, "data")
            if data.dtype != np.uint8 or data.shape != (len(classes), 3072):
                raise StorageError(f"{path}: data is {data.dtype} {data.shape}, must be uint8 {(len(classes), 3072)}")
            if classes.dtype.kind not in "iu" or not len(classes) or not 1 <= classes.min() <= classes.max() <= 1000:
                raise StorageError(f"{path}: labels must be whole numbers from 1 to 1000")
            images[start : start + len(data)] = data
            start += len(data)
        parts[part] = (images.reshape(-1, 3, 32, 32), np.concatenate(labels).astype(np.int64) - 1)
    return parts


class _Member(tarfile.TarInfo):
    """A damaged or missing header inside a tar is an error, where tarfile takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from error


def _is_tar(archive: Path) -> bool:
    return not archive.is_dir() and archive.suffix.lower() != ".zip"


def _where(archive: Path, name: str) -> str:
    return str(archive / name) if archive.is_dir() else f"{archive}: {name}"


def _visible(name: str) -> bool:
    """Whether a name is relative and without '..' and hidden parts."""
    path = PurePosixPath(name)
    return not path.is_absolute() and not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Names of the files in a folder or zip (sorted by path) or a tar (in its order), with their bytes where wanted.

    Hidden files, links in archives and names with '..' are passed over.
    """
    with _reading(archive):
        if archive.is_dir():
            for path in sorted(path.relative_to(archive) for path in archive.rglob("*") if path.is_file()):
                if _visible(name := path.as_posix()):
                    yield name, (archive / path).read_bytes() if wanted(name) else None
        elif not _is_tar(archive):
            with zipfile.ZipFile(archive) as file:
                for entry in sorted(file.infolist(), key=lambda entry: PurePosixPath(entry.filename)):
                    name = str(PurePosixPath(entry.filename))
                    if _visible(name) and not entry.is_dir() and not stat.S_ISLNK(entry.external_attr >> 16):
                        yield name, file.read(entry) if wanted(name) else None
        else:
            mode = "r:" if archive.suffix.lower() == ".tar" else "r:gz"
            with tarfile.open(archive, mode, tarinfo=_Member) as file:
                for member in file:
                    if member.isfile() and _visible(name := str(PurePosixPath(member.name))):
                        yield name, file.extractfile(member).read() if wanted(name) else None
                while file.fileobj.read(1 << 20):  # to the end, where gzip checks its sum
                    pass


def _archives(source: str) -> list[Path]:
    """The folder or archive at `source`, or the sorted archives of a pattern."""
    path = Path(source).expanduser()
    found = [path] if path.exists() else [Path(match) for match in sorted(glob(str(path), recursive=True))]
    wrong = [path for path in found if not path.is_dir() and not path.name.lower().endswith(ARCHIVES)]
    if wrong or not found:
        allowed = f"a folder, {', '.join(ARCHIVES)}, or a pattern of such archives"
        raise StorageError(f"{wrong[0] if wrong else source}: no such folder or archive; allowed: {allowed}")
    return found


def _key(archive: Path, name: str) -> tuple[str, str]:
    """A file's sample and type: in a tar the name up to the first dot of its last part, and what follows
    (webdataset's rule); elsewhere each file is a sample."""
    if not _is_tar(archive):
        return name, PurePosixPath(name).suffix[1:].lower()
    folder, _, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return f"{folder}/{stem}", kind.lower()


def _samples(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes | None, dict[str, bytes | None]]]:
    """An image's name and bytes, and type → bytes of all members of its sample, which follow each other; bytes are
    None where the type is not wanted."""
    members = _members(archive, lambda name: _key(archive, name)[1] in wanted)
    for _, group in groupby(members, lambda member: _key(archive, member[0])[0]):
        names, sample = {}, {}
        for name, data in group:
            kind = _key(archive, name)[1]
            names[kind], sample[kind] = name, data
        found = sorted(IMAGE_TYPES & sample.keys())
        if len(found) > 1:
            raise StorageError(f"{_where(archive, names[found[0]])}: its sample has several images, allowed: one")
        for kind in found:
            yield names[kind], sample[kind], sample


def _decode(data: bytes, where: str, side: int, crop: int | None) -> np.ndarray:
    """An encoded image as uint8 (3, side, side): turned as its EXIF says, RGB (alpha dropped), centre crop to
    crop × crop (None: the largest square), then Lanczos to shrink or bicubic to enlarge."""
    from PIL import Image, ImageOps

    with _reading(where):
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "BMP"]))
        if image.mode[0] in "IF":
            raise ValueError(f"pixels of mode {image.mode}, allowed: 8 bits a channel")
        image = image.convert("RGB")
    width, height = image.size
    size = crop or min(width, height)
    if size > min(width, height):
        raise StorageError(f"{where}: {width}×{height} pixels, smaller than the crop of {size}")
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    if size != side:
        image = image.resize((side, side), Image.Resampling.LANCZOS if size > side else Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def _class(where: str, folder: str, sample: dict[str, bytes | None]) -> int | str:
    """A sample's class: the number in its .cls member, else its folder's name."""
    text = sample.get("cls", b"").strip()
    if "cls" in sample and (not text.isdigit() or len(text) > 6):
        raise StorageError(f"{where}: .cls member {text[:20]!r}, allowed: a number from 0 to 999999")
    if not text and not folder:
        raise StorageError(f"{where}: has no class; allowed: in a sub-folder that names it, or beside a .cls in a tar")
    return int(text) if text else folder


def images(
    source: str, side: int, crop: int | None, labels: str | None, test_share: float, seed: int
) -> dict[str, Split]:
    """Any images, RGB (n, 3, side, side): train and test, shuffled by the seed.

    Args:
        source: a folder or zip (with sub-folders, sorted by path), a webdataset tar (in its order), or a pattern.
        side: pixels, after a Lanczos filter to shrink, bicubic to enlarge.
        crop: side of the centre crop before that; None for the largest square.
        labels: "folder": the name of the folder that an image lies in is its class (sorted, from 0), in a tar the
            number in the sample's .cls member where it has one; None: all 0.
        test_share: share held out, in (0, 1).

    Raises:
        StorageError: nothing there, a damaged archive or image, an image smaller than the crop or without class.
        MismatchError: a test_share that leaves train or test empty.
    """
    pixels, classes = bytearray(), []
    for archive in _archives(source):
        for name, data, sample in _samples(archive, IMAGE_TYPES | ({"cls"} if labels else set())):
            where = _where(archive, name)
            pixels += _decode(data, where, side, crop).tobytes()
            classes.append(_class(where, PurePosixPath(name).parent.name, sample) if labels else 0)
    if not (count := len(classes)):
        raise StorageError(f"{source}: holds no images; allowed: {', '.join(sorted(IMAGE_TYPES))}")
    if len({type(value) for value in classes}) > 1:
        raise StorageError(f"{source}: some images have a .cls member and some have none; allowed: all or none")
    if isinstance(classes[0], str):
        classes = np.unique(classes, return_inverse=True)[1]
    held_out = round(test_share * count)
    if not 0 < held_out < count:
        raise MismatchError(f"{source}: test_share {test_share} of {count} images leaves train or test empty")
    order = generator(seed, "split").permutation(count)
    arrays = np.frombuffer(pixels, np.uint8).reshape(count, 3, side, side), np.asarray(classes, np.int64)
    parts = {"train": order[held_out:], "test": order[:held_out]}
    return {part: (arrays[0][rows], arrays[1][rows]) for part, rows in parts.items()}


def _metadata(data: bytes, where: str) -> Iterator[tuple[str, str]]:
    """File name and caption of each row of a metadata.csv or metadata.jsonl."""
    with _reading(where):
        lines = io.StringIO(data.decode("utf-8-sig"), newline="")
        table = where.endswith(".csv")
        rows = csv.DictReader(lines, strict=True) if table else (json.loads(line) for line in lines if line.strip())
        for number, row in enumerate(rows, 1):
            caption = row.get("text", row.get("caption"))
            if not isinstance(caption, str) or not isinstance(row.get("file_name"), str):
                raise ValueError(f"row {number} without file_name and text; allowed: file_name, and text or caption")
            yield row["file_name"], caption


def _caption(where: str, sample: dict[str, bytes | None]) -> str:
    """The caption beside an image of a webdataset: its .txt, else `caption` or `text` in its .json."""
    with _reading(where):
        if "txt" in sample:
            return sample["txt"].decode().strip()
        entry = json.loads(sample.get("json", b"{}"))
        caption = entry.get("caption", entry.get("text"))
        if not isinstance(caption, str):
            raise ValueError("no caption beside it; allowed: .txt, or .json with caption or text")
        return caption


def _pairs(archive: Path, pixels: bool) -> Iterator[tuple[str, bytes | None, str]]:
    """Name, encoded image (None unless `pixels`) and caption of each captioned image, in the archive's order."""
    names, texts = set(), {}
    for name, data in _members(archive, lambda name: PurePosixPath(name).name in METADATA):
        names.add(name)
        for file, text in () if data is None else _metadata(data, _where(archive, name)):
            path = str(PurePosixPath(name).parent / file)
            if path in texts:
                raise StorageError(f"{_where(archive, name)}: {file} has two captions, allowed: one")
            texts[path] = text
    if absent := sorted(texts.keys() - names):
        raise StorageError(f"{_where(archive, absent[0])}: named in the metadata, but not there")
    empty = not texts
    if texts:
        for name, data in _members(archive, lambda name: pixels and name in texts):
            if name in texts:
                yield name, data, texts[name]
    elif _is_tar(archive):
        for name, data, sample in _samples(archive, {"txt", "json"} | (IMAGE_TYPES if pixels else set())):
            empty = False
            yield name, data, _caption(_where(archive, name), sample)
    if empty:
        allowed = "metadata.csv or .jsonl (file_name, and text or caption), or a tar with .txt or .json beside images"
        raise StorageError(f"{archive}: holds no images with captions; allowed: {allowed}")


def captioned(source: str, side: int) -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, image uint8 (3, side, side) and caption, one after the other; the largest square, resized as in `images`.

    Args:
        source: a folder, zip or tar with metadata.csv or metadata.jsonl (file_name, relative to it, and text or
            caption; images that it does not name are left out), a webdataset tar (.txt, or .json with caption or
            text, beside each image), or a pattern of such archives.

    Raises:
        StorageError: nothing there, a damaged archive or image, a named image or a caption missing.
    """
    for archive in _archives(source):
        for name, data, caption in _pairs(archive, pixels=True):
            yield name, _decode(data, _where(archive, name), side, None), caption


def captions(source: str) -> list[tuple[str, str]]:
    """Names and captions in the order of `captioned`, without decoding images; it raises the same."""
    return [(name, caption) for archive in _archives(source) for name, _, caption in _pairs(archive, pixels=False)]


def read(settings: dict) -> dict[str, Split]:
    """The data set of settings["kind"] (fashion, cifar10, imagenet32 or images), called with the other keys.

    Raises:
        ConfigError: another kind.
        ConsistencyError: what the reader raises.
    """
    readers = {"fashion": fashion, "cifar10": cifar10, "imagenet32": imagenet32, "images": images}
    if (kind := settings["kind"]) not in readers:
        raise ConfigError(f"data.kind: {kind!r} is not a set of labelled images; allowed: {', '.join(readers)}")
    return readers[kind](**{key: value for key, value in settings.items() if key != "kind"})
