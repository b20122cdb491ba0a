"""Images, folders and archives as users have them, and the one line that refuses those that cannot be read."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from consistency.errors import StorageError
from PIL import Image


def refused(pattern, function, *args, **keys):
    """The function stops with a StorageError of one line that matches."""
    with pytest.raises(StorageError, match=pattern) as caught:
        function(*args, **keys)
    assert "\n" not in str(caught.value)


def encoded(pixels, kind="PNG", **keys):
    """Bytes of an image file of `pixels` (H, W[, 3])."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **keys)
    return file.getvalue()


def noise(seed, height=12, width=12):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def add(tar, name, data=b"", **keys):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for key, value in keys.items():
        setattr(entry, key, value)
    tar.addfile(entry, io.BytesIO(data))


def write(place, files):
    """`files` (name → bytes) as a folder, a zip or a tar, by the name of `place`."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif place.suffix in (".tar", ".gz", ".tgz"):
        with tarfile.open(place, "w" if place.suffix == ".tar" else "w:gz") as archive:
            for name, data in files.items():
                add(archive, name, data)
    else:
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
    return place
