"""Readers of image data sets: uint8 images (n, C, H, W) with int64 labels (n,), or images with captions.

The named sets are here; users' own are read by `images` and `captions`. Errors are as in `archives`.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zipfile
from pathlib import Path

import numpy as np

from ..errors import ConfigError, StorageError
from ..files import bounds
from ..files.storage import sha256
from .account import Account
from .archives import members, reading
from .captions import captioned  # noqa: F401 (one door for users)
from .fetch import downloads
from .images import Split, images

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


def _find(places: list[Path], advice: str) -> Path:
    if present := [path for path in places if path.is_file()]:
        return present[0]
    raise StorageError(f"{places[0]}: no such file; {advice}")


def _check(actual: str, expected: str, where: Path) -> None:
    if actual != expected:
        raise StorageError(f"{where}: damaged: sha256 is {actual[:12]}…, the official one {expected[:12]}…; replace it")


def _unpacked(path: Path) -> bytes:
    """The bytes of an IDX file, gzipped or not, which end where the largest official one does."""
    with bounds.regular(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
        data = file.read(bounds.IDX + 1)
    if len(data) > bounds.IDX:
        raise StorageError(f"{path}: holds more than {bounds.IDX:,} bytes, the largest official file's; replace it")
    return data


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
    arrays, source = [], FASHION_DEBIAN if folder is None else Path(folder).expanduser()
    fetched = {file["name"]: file for file in needs("fashion", folder)}
    for name, expected in FASHION_SHA256.items():
        if fetched:
            path = downloads.fetch(*fetched[f"fashion-mnist-{name}.gz"].values())
        else:
            path = _find([source / f"{name}.gz", source / name], f"get it from {FASHION_URL}/{name}.gz")
        with reading(path):
            data = _unpacked(path)
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
    if fetched := needs("cifar10", folder):
        path = downloads.fetch(*fetched[0].values())
    else:
        path = _find([Path(folder).expanduser() / CIFAR10_FILE], f"get it from {CIFAR10_URL}")
    _check(sha256(path), CIFAR10_SHA256, path)
    files = dict(members(path, lambda name: name.endswith(".bin")))
    parts = {}
    for part, names in CIFAR10_FILES.items():
        data = b"".join(files[f"cifar-10-batches-bin/{name}"] for name in names)
        records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
        parts[part] = (records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))
    return parts


def _npz(path: Path, name: str) -> np.ndarray:
    with reading(path), bounds.regular(path) as file:
        with zipfile.ZipFile(file) as archive:
            entry = archive.getinfo(f"{name}.npy")
            bounds.check_size(f"{path}: {name}", entry.file_size, bounds.ARRAY)
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
                raise ValueError(f"{name}: compressed otherwise than NumPy does")
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                header = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
                shape, _, kind = getattr(np.lib.format, header)(stream)
        if math.prod(shape) * kind.itemsize > entry.file_size:  # NumPy takes the memory first
            raise ValueError(f"{name}: its header declares {shape} of {kind}, more than it holds")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[name]


def imagenet32(folder: str) -> dict[str, Split]:
    """ImageNet at 32×32, 1,281,167 + 50,000 images: train and test, (n, 3, 32, 32), labels from 0; 5 GB of memory.

    Args:
        folder: of train_data_batch_1.npz to _10.npz and val_data.npz, or of the unpacked archives that hold them,
            placed by hand: image-net.org asks for registration.

    Raises:
        StorageError: a file is missing or is not what it should be.
    """
    source, parts = Path(folder).expanduser(), {}
    for part, (archive, names) in IMAGENET32_FILES.items():
        advice = f"get {archive}.zip from {IMAGENET_URL} (registration needed) and unpack it in {source}"
        files = [_find([source / name, source / archive / name], advice) for name in names]
        labels = [_npz(path, "labels").ravel() for path in files]
        for path, classes in zip(files, labels, strict=True):
            bounds.check_size(f"{path}: images of {len(classes):,} labels", 3072 * len(classes), bounds.ARRAY)
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


def read(settings: dict, account: Account | None = None) -> dict[str, Split]:
    """The data set of settings["kind"] (fashion, cifar10, imagenet32 or images), called with the other keys.

    Args:
        account: what is passed over of images is told to it.

    Raises:
        ConfigError: another kind.
        ConsistencyError: what the reader raises.
    """
    readers = {"fashion": fashion, "cifar10": cifar10, "imagenet32": imagenet32, "images": images}
    if (kind := settings["kind"]) not in readers:
        raise ConfigError(f"data.kind: {kind!r} is not a set of labelled images; allowed: {', '.join(readers)}")
    options = {key: value for key, value in settings.items() if key != "kind"}
    return readers[kind](**options | ({"account": account} if kind == "images" else {}))
