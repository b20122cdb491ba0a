"""Data sets as one safetensors file: samples (images, points or latents), labels, and the split."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MismatchError, StorageError
from ..files.storage import load_tensors, save_tensors
from ..flow.streams import generator
from . import datasets, mixtures
from .account import Account
from .images import Split

log = logging.getLogger("consistency")

FEWEST = 4  # images to train on: the Fréchet distance between halves of them needs two in each


def _mixture(settings: dict[str, Any]) -> dict[str, Split]:
    counts = {"train": settings["train_count"], "test": settings["test_count"]}
    parameters = mixtures.parameters(settings["dimension"], settings["components"])
    points = mixtures.draw(**parameters, count=sum(counts.values()), seed=settings["seed"]).astype(np.float32)
    parts = np.split(points, [counts["train"]])
    return {part: (values, np.zeros(len(values), np.int64)) for part, values in zip(counts, parts, strict=True)}


def _digits(settings: dict[str, Any]) -> dict[str, Split]:
    """scikit-learn's 1,797 handwritten digits: images (n, 1, 8, 8) in [−1, 1], labels (n,) 0..9."""
    from sklearn.datasets import load_digits

    try:
        bunch = load_digits()
    except (OSError, ValueError) as error:
        raise StorageError(f"digits: scikit-learn's data file cannot be read ({error}); reinstall it") from error
    images, labels = (bunch.images[:, None] / 8 - 1).astype(np.float32), bunch.target.astype(np.int64)
    order = generator(settings["seed"], "split").permutation(len(labels))
    held_out = round(settings["test_share"] * len(labels))
    return {
        part: (images[rows], labels[rows]) for part, rows in (("test", order[:held_out]), ("train", order[held_out:]))
    }


def _read(settings: dict[str, Any], account: Account) -> dict[str, Split]:
    options = {key: value for key, value in settings.items() if key not in ("conditional", "name")}
    parts = datasets.read(options, account)
    if not settings.get("conditional", True):
        parts = {part: (images, np.zeros_like(labels)) for part, (images, labels) in parts.items()}
    return parts


def prepare(path: str | Path, settings: dict[str, Any]) -> None:
    """Write a data set, split, to `path`.

    The file holds train_images, train_labels, test_images, test_labels. Samples are images (n, C, H, W), as float32
    in [−1, 1] or as uint8 (see `as_float`), or a mixture's draws (n, d); labels int64. What was read of files, and
    what was passed over, is in the metadata as `read` (see `account`), and in the log `consistency`.

    Args:
        settings: of a kind of `sources.Data` other than captions (see `latents`).

    Raises:
        StorageError: missing or damaged files.
        MismatchError: data that cannot carry the experiment: too few images, a class without any, one class.
    """
    kind = settings["kind"]
    account = Account(settings.get("source") or settings.get("folder") or kind)
    generate = {"mixture": _mixture, "digits": _digits}.get(kind)
    try:
        parts = generate(settings) if generate else _read(settings, account)
        account.count({part: labels for part, (_, labels) in parts.items()})
        if kind != "mixture":
            check_images(parts["train"][0], account.source, settings.get("test_share"))
            _check_parts(account)
    finally:
        account.tell()
    tensors = {f"{part}_images": images for part, (images, _) in parts.items()}
    tensors |= {f"{part}_labels": labels for part, (_, labels) in parts.items()}
    metadata = {"name": kind, "classes": len(account.classes["names"])}
    save_tensors(path, tensors, metadata | ({} if generate else {"read": account.record()}))


def check_images(images: np.ndarray, source: str, test_share: float | None = None) -> None:
    """Whether images can be learned from and measured against.

    Args:
        images: to train on, (n, C, H, W).
        source: of the data, for the message.
        test_share: share of them that is held out already.

    Raises:
        MismatchError: fewer than `FEWEST`.
    """
    if len(images) < FEWEST:
        less = "" if test_share is None else f" or a data.test_share below {test_share:g}"
        raise MismatchError(
            f"{source}: too few images to train on, {len(images)}: halves of them are compared; allowed: at least "
            f"{FEWEST}, by more images in data.source{less}"
        )
    if not any((images[row] != images[0]).any() for row in range(1, len(images))):
        log.warning(
            "%s: all %d images to train on are the same: no distance to them has a meaning", source, len(images)
        )


def _check_parts(account: Account) -> None:
    """There are images to test on, and of every class images to train on; classes without any to test on are told.

    Raises:
        MismatchError: there are none.
    """
    if not account.samples["test"]:
        raise MismatchError(f"{account.source}: no image to test on; allowed: a larger data.test_share")
    for name, train, test in zip(*(account.classes[key] for key in ("names", "train", "test")), strict=True):
        if not train:
            raise MismatchError(
                f"{account.source}: class {name!r} has no image to train on, and {test} held out; allowed: more images "
                "of it, a smaller data.test_share, or another data.seed"
            )
        if not test:
            account.remark("classes without an image to test on", name)


def load(path: str | Path, framework: str = "pt") -> tuple[dict[str, Any], int]:
    """The tensors of `prepare` and the number of classes."""
    tensors, metadata = load_tensors(path, framework=framework)
    return tensors, metadata["classes"]


def as_float(images: Any) -> Any:
    """Tensors in [−1, 1]: uint8 as x / 127.5 − 1, anything else as it is."""
    import torch

    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
