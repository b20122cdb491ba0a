"""Images of a user's folder or archive, with the classes that folders or labels give them."""

from __future__ import annotations

import io
import unicodedata
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MismatchError, StorageError
from ..files import bounds
from ..flow.streams import generator
from . import archives
from .account import Account
from .archives import IMAGE_TYPES, kind_of, reading, short, where

if TYPE_CHECKING:
    from PIL import Image

Split = tuple[np.ndarray, np.ndarray]

FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"]  # that Pillow may open
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def decode(data: bytes, archive: Path, name: str, side: int, crop: int | None, account: Account) -> np.ndarray:
    """An encoded image as uint8 (3, side, side): turned as its EXIF says, RGB (alpha dropped), centre crop to
    crop × crop (None: the largest square), then Lanczos to shrink or bicubic to enlarge.

    Raises:
        StorageError: damaged, an animation, more than 8 bits a channel, smaller than the crop, or of more than
            `bounds.PIXELS`.
    """
    from PIL import Image, ImageOps

    shown = where(archive, name)
    with reading(shown):
        image = _opened(data)
        if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a photograph and previews
            raise ValueError("several frames or pages, allowed: one")
        if image.mode[0] in "IF":
            raise ValueError(f"pixels of mode {image.mode}, allowed: 8 bits a channel")
        ImageOps.exif_transpose(image, in_place=True)
        image = image if image.mode == "RGB" else image.convert("RGB")
    width, height = image.size
    size = crop or min(width, height)
    if size > min(width, height):
        raise StorageError(f"{shown}: {width}×{height} pixels, smaller than the crop of {size}")
    left, top = (width - size) // 2, (height - size) // 2
    if (size, size) != image.size:
        image = image.crop((left, top, left + size, top + size))
    if size < side:
        account.remark(f"images enlarged to {side}×{side} pixels", short(archive, name))
    if size != side:
        image = image.resize((side, side), Image.Resampling.LANCZOS if size > side else Image.Resampling.BICUBIC)
    pixels = np.asarray(image).transpose(2, 0, 1)
    account.compare(pixels, short(archive, name))
    return pixels


def _opened(data: bytes) -> Image.Image:
    """An image whose header alone is read yet; its size is one that may be."""
    from PIL import Image

    allowed = f"allowed: at most {bounds.PIXELS:,}"
    with warnings.catch_warnings():
        # From 89 million pixels, which photographs have.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise ValueError(f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, {allowed}") from None
    width, height = image.size
    if width * height > bounds.PIXELS:
        raise ValueError(f"{width}×{height} pixels, {allowed}")
    return image


def images(
    source: str,
    side: int,
    crop: int | None,
    labels: str | None,
    test_share: float,
    seed: int,
    account: Account | None = None,
) -> dict[str, Split]:
    """Any images, RGB (n, 3, side, side): train and test, shuffled by the seed.

    Args:
        source: a folder (links in it are followed) or zip, with sub-folders, sorted by path; a tar, of a folder or a
            webdataset, in its order; or a pattern of archives. Types: `archives.IMAGE_TYPES`.
        side: pixels, after a Lanczos filter to shrink, bicubic to enlarge.
        crop: side of the centre crop before that; None for the largest square.
        labels: "folder": an image's class is the number in the .cls member beside it in a tar, where there are any,
            else a folder (`class_names`); numbered in order from 0. None: all 0.
        test_share: share held out, in (0, 1).
        account: what is passed over is told to it, and the classes' names.

    Raises:
        StorageError: nothing there, a damaged archive or image, an image smaller than the crop or without class.
        MismatchError: a test_share that leaves train or test empty; labels of one class; folders that can be read as
            classes in several ways.
    """
    account = account or Account(source)
    pixels, names, numbers = bytearray(), [], []
    for archive in archives.archives(source):
        used = {"cls"} if labels and archives.is_tar(archive) else set()
        listed = dict(archives.members(archive, lambda name, used=used: kind_of(name) in used, account))
        samples = archives.together(archive, listed, used, account)
        for name, data in archives.members(archive, samples.__contains__):
            if data is None:
                continue
            pixels += decode(data, archive, name, side, crop, account).tobytes()
            names.append(name)
            numbers += [_number(where(archive, name), samples[name]["cls"])] if "cls" in samples[name] else []
    if not (count := len(names)):
        passed = f"; {account.passed_over()}" if account.passed_over() else ""
        raise StorageError(f"{source}: holds no images; allowed: {', '.join(sorted(IMAGE_TYPES))}{passed}")
    classes = np.zeros(count, np.int64)
    if labels:
        classes, account.names = _classes(source, names, numbers, account)
    held_out = round(test_share * count)
    if not 0 < held_out < count:
        raise MismatchError(f"{source}: data.test_share {test_share} of {count} images leaves train or test empty")
    order = generator(seed, "split").permutation(count)
    array = np.frombuffer(pixels, np.uint8).reshape(count, 3, side, side)
    parts = {"train": order[held_out:], "test": order[:held_out]}
    return {part: (array[rows], classes[rows]) for part, rows in parts.items()}


def _number(member: str, text: bytes) -> int:
    """The class in a .cls member."""
    text = text.strip()
    if not text.isdigit() or len(text) > 6:
        raise StorageError(f"{member}: .cls member {text[:20]!r}, allowed: a number from 0 to 999999")
    return int(text)


def _classes(source: str, names: list[str], numbers: list[int], account: Account) -> tuple[np.ndarray, list[str]]:
    """The images' classes, int64 (n,) from 0 without gaps, and the classes' names."""
    if numbers and len(numbers) < len(names):
        raise StorageError(f"{source}: some images have a .cls member and some have none; allowed: all or none")
    by_image = numbers or class_names(source, names)
    distinct, classes = np.unique(by_image, return_inverse=True)
    distinct = [str(name) for name in distinct]
    if len(distinct) == 1:
        raise MismatchError(
            f"{source}: data.labels: folder finds one class, {distinct[0]!r}; classifier and guidance need two; "
            "allowed: a folder for each class, or data.labels: null with guidance 1 and a pretrained extractor"
        )
    for number, name in enumerate(distinct) if numbers else ():
        if name != str(number):
            account.remark("classes without images in between, so numbered anew", f".cls {name} is {number}")
    alike: dict[str, str] = {}
    for name in distinct:
        first = alike.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if first != name:
            account.remark("classes whose names differ by case or accents' encoding alone", f"{first} and {name}")
    return classes.astype(np.int64), distinct


def class_names(source: str, names: list[str]) -> list[str]:
    """Each image's class: the first folder of its name, below folders that all images lie in.

    So with CLASS/FILE, CLASS/images/FILE, train/CLASS/FILE, and an archive of a folder.

    Args:
        names: of the images, relative to the source.

    Raises:
        StorageError: an image that lies in no folder.
        MismatchError: train/… beside test/…, or a class with images in several folders: which folders are the
            classes is not certain.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    while all(len(parts) > 1 for parts in folders) and len({parts[0] for parts in folders}) == 1:
        folders = [parts[1:] for parts in folders]
    inner: dict[str, set[str]] = {}
    for name, parts in zip(names, folders, strict=True):
        if not parts:
            raise StorageError(
                f"{source}: {name}: has no class; allowed: in a sub-folder that names it, or beside a .cls in a tar"
            )
        inner.setdefault(parts[0], set()).add("/".join(parts))
    if len(inner) > 1 and {name.lower() for name in inner} <= SPLITS:
        raise MismatchError(
            f"{source}: {', '.join(sorted(inner))} are parts of a data set, not classes; allowed: one of them as "
            "data.source, which data.test_share splits"
        )
    for name, places in inner.items():
        if len(places) > 1:
            one, other, *_ = sorted(places)
            raise MismatchError(
                f"{source}: images lie in {one} and in {other}, so {name} may be the class or the folders in it; "
                "allowed: CLASS/FILE, or CLASS/FOLDER/FILE with one folder in each class (links are followed)"
            )
    return [parts[0] for parts in folders]
