"""Image data sets: the official bytes or nothing, the same arrays from every layout, one line for every fault."""

import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import needs
import numpy as np
import pytest
from consistency.data import archives, datasets
from consistency.errors import ConfigError, MismatchError, StorageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from users import add, encoded, noise, refused, write

PARTS = ("train", "test")


def same(one, other):
    return all(np.array_equal(a, b) for part in PARTS for a, b in zip(one[part], other[part]))


def idx(values):
    shape = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return b"\0\0\x08" + bytes([values.ndim]) + shape + values.tobytes()


def read_images(source, side=12, crop=None, labels=None, test_share=0.5, seed=0):
    return datasets.images(str(source), side, crop, labels, test_share, seed)


def test_no_torch():
    code = "import sys, consistency.data.datasets; assert 'torch' not in sys.modules; assert 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(datasets.__file__).parents[2])


@pytest.mark.needs("fashion-mnist")
def test_fashion_of_debian():
    assert datasets.FASHION_DEBIAN == needs.FASHION_MNIST
    parts = datasets.fashion()
    for part, count in (("train", 60_000), ("test", 10_000)):
        images, labels = parts[part]
        assert (images.shape, images.dtype, labels.dtype) == ((count, 1, 32, 32), np.uint8, np.int64)
        assert np.bincount(labels).tolist() == [count // 10] * 10
        assert not images[:, :, [0, 1, -2, -1]].any()
        assert not images[..., [0, 1, -2, -1]].any()
    assert parts["train"][0][:, :, 2:-2, 2:-2].mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert parts["train"][1][:5].tolist() == [9, 0, 0, 3, 0]


@pytest.fixture
def small_fashion(monkeypatch):
    """Name → decompressed bytes of four small IDX files, taken for the official ones."""
    rng = np.random.default_rng(0)
    files = {}
    for name in datasets.FASHION_SHA256:
        count = 5 if name.startswith("train") else 3
        high, shape = (256, (count, 28, 28)) if "images" in name else (10, (count,))
        files[name] = idx(rng.integers(0, high, shape, np.uint8))
    monkeypatch.setattr(datasets, "FASHION_SHA256", {n: hashlib.sha256(d).hexdigest() for n, d in files.items()})
    return files


def test_fashion_from_gz_plain_and_network(tmp_path, small_fashion, monkeypatch):
    plain = write(tmp_path / "plain", small_fashion)
    packed = write(tmp_path / "packed", {f"{n}.gz": gzip.compress(d) for n, d in small_fashion.items()})
    asked = []

    def fetch(url, name, sha256=None):
        asked.append((url, name, sha256))
        return packed / name.removeprefix("fashion-mnist-")

    monkeypatch.setattr("consistency.data.fetch.downloads.fetch", fetch)
    monkeypatch.setattr(datasets, "FASHION_DEBIAN", tmp_path / "nowhere")
    parts = datasets.fashion(str(plain))
    assert same(parts, datasets.fashion(str(packed)))
    assert not asked
    assert same(parts, datasets.fashion(None))
    base = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    assert asked == [(f"{base}{n}.gz", f"fashion-mnist-{n}.gz", datasets.FASHION_GZ[n]) for n in small_fashion]
    images = np.frombuffer(small_fashion["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(3, 1, 28, 28)
    expected = np.zeros((3, 1, 32, 32))
    expected[:, :, 2:30, 2:30] = images
    assert np.array_equal(parts["test"][0], expected)
    assert parts["test"][1].tolist() == list(small_fashion["t10k-labels-idx1-ubyte"][8:])


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_damaged_or_missing(tmp_path, small_fashion, packed):
    pack, suffix = (gzip.compress, ".gz") if packed else (bytes, "")
    folder = write(tmp_path, {f"{n}{suffix}": pack(d) for n, d in small_fashion.items()})
    for name, data in small_fashion.items():
        path = folder / f"{name}{suffix}"
        flipped = bytearray(data)
        flipped[-1] ^= 1
        path.write_bytes(pack(bytes(flipped)))
        refused(rf"{name}.*: damaged: sha256 is .* the official one", datasets.fashion, str(folder))
        path.write_bytes(pack(data)[:-3])
        refused(rf"{name}.*: (cannot be read|damaged)", datasets.fashion, str(folder))
        path.unlink()
        refused(rf"{name}\.gz: no such file; get it from http://fashion-mnist", datasets.fashion, str(folder))
        path.write_bytes(pack(data))
    assert datasets.fashion(str(folder))["train"][0].shape == (5, 1, 32, 32)


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.builds(lambda dims, rest: b"\0\0\x08" + dims + rest, st.binary(max_size=17), st.binary(max_size=8)),
    )
)
def test_read_idx_on_any_bytes(data):
    try:
        array = datasets.read_idx(data, "here")
    except StorageError as error:
        assert str(error).startswith("here: ")
        assert "\n" not in str(error)
    else:
        assert idx(array) == data


def test_read_idx_wants_the_length_that_the_header_says():
    whole = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert datasets.read_idx(whole, "x").tolist() == [[0, 1, 2], [3, 4, 5]]
    for wrong in [whole[:cut] for cut in range(len(whole))] + [
        whole + b"\0",
        b"\0\0\x09" + whole[3:],
        b"\1" + whole[1:],
    ]:
        refused("^x: ", datasets.read_idx, wrong, "x")
    refused("8 bytes do not hold 0 values", datasets.read_idx, b"\0\0\x08\x01\0\0\0\0", "x")
    refused("begins with '1f8b0800'; allowed: IDX", datasets.read_idx, b"\x1f\x8b\x08\x00", "x")
    refused("12 bytes do not hold 4294967295×4294967295 values", datasets.read_idx, b"\0\0\x08\x02" + b"\xff" * 8, "x")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A function that writes the archive, taken for the official one, and gives its folder."""

    def make(files):
        path = write(tmp_path / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{n}": d for n, d in files.items()})
        monkeypatch.setattr(datasets, "CIFAR10_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        return path.parent

    return make


def cifar_batches():
    rng = np.random.default_rng(1)
    names = [*(f"data_batch_{k}.bin" for k in (3, 1, 2, 5, 4)), "test_batch.bin"]
    records = {n: rng.integers(0, 256, (4, 3073), np.uint8) for n in names}
    for batch in records.values():
        batch[:, 0] %= 10
    return records


def test_cifar10(cifar, monkeypatch):
    records = cifar_batches()
    folder = cifar({n: d.tobytes() for n, d in records.items()} | {"batches.meta.txt": b"airplane\n"})
    parts = datasets.cifar10(str(folder))
    rows = np.concatenate([records[f"data_batch_{k}.bin"] for k in range(1, 6)])
    for part, expected in (("train", rows), ("test", records["test_batch.bin"])):
        images, labels = parts[part]
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        assert labels.tolist() == expected[:, 0].tolist()
        assert np.array_equal(images[:, 2, 5, 7], expected[:, 1 + 2 * 1024 + 5 * 32 + 7])
        assert images.shape == (len(expected), 3, 32, 32)
    asked = []
    monkeypatch.setattr("consistency.data.fetch.downloads.fetch", lambda *args: asked.append(args) or folder / args[1])
    assert same(parts, datasets.cifar10(None))
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert asked == [(url, "cifar-10-binary.tar.gz", datasets.CIFAR10_SHA256)]


def test_cifar10_damaged_or_missing(cifar, tmp_path):
    good = {n: d.tobytes() for n, d in cifar_batches().items()}
    refused("cifar-10-binary.tar.gz: no such file; get it from https://www.cs", datasets.cifar10, str(tmp_path))
    path = cifar(good) / "cifar-10-binary.tar.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused("damaged: sha256 is", datasets.cifar10, str(tmp_path))


def npz(path, **arrays):
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)


def test_imagenet32(tmp_path):
    rng = np.random.default_rng(2)
    names = [
        *(f"Imagenet32_train_npz/train_data_batch_{k}.npz" for k in range(1, 11)),
        "Imagenet32_val_npz/val_data.npz",
    ]
    data = {
        n: (rng.integers(0, 256, (k % 3 + 1, 3072), np.uint8), rng.integers(1, 1001, k % 3 + 1))
        for k, n in enumerate(names)
    }
    for name, (pixels, labels) in data.items():
        npz(tmp_path / name, data=pixels, labels=labels, mean=np.zeros(3072))
    parts = datasets.imagenet32(str(tmp_path))
    for part, chosen in (("train", names[:-1]), ("test", names[-1:])):
        assert np.array_equal(parts[part][0], np.concatenate([data[n][0] for n in chosen]).reshape(-1, 3, 32, 32))
        assert np.array_equal(parts[part][1], np.concatenate([data[n][1] for n in chosen]) - 1)
        assert [a.dtype for a in parts[part]] == [np.uint8, np.int64]

    (tmp_path / names[-1]).rename(tmp_path / "val_data.npz")
    assert same(parts, datasets.imagenet32(str(tmp_path)))
    batch = tmp_path / names[3]
    pixels, labels = data[names[3]]
    for arrays, pattern in (
        ({"data": pixels, "labels": labels * 0}, "labels must be whole numbers from 1 to 1000"),
        ({"data": pixels, "labels": labels / 2}, "labels must be whole numbers from 1 to 1000"),
        ({"data": pixels[:, :-1], "labels": labels}, r"data is uint8 \(1, 3071\), must be uint8 \(1, 3072\)"),
        ({"data": pixels.astype(float), "labels": labels}, "data is float64"),
        ({"data": pixels}, "cannot be read .*labels"),
        ({"data": pixels, "labels": np.array([{}], object)}, "cannot be read .*allow_pickle=False"),
    ):
        npz(batch, **arrays)
        refused(f"train_data_batch_4.npz: {pattern}", datasets.imagenet32, str(tmp_path))
    batch.write_bytes(b"no npz at all")
    refused("train_data_batch_4.npz: cannot be read", datasets.imagenet32, str(tmp_path))
    batch.unlink()
    place = rf"{tmp_path}/train_data_batch_4.npz: no such file; get Imagenet32_train_npz.zip from"
    advice = rf"https://image-net.org/download-images \(registration needed\) and unpack it in {tmp_path}"
    refused(f"{place} {advice}", datasets.imagenet32, str(tmp_path))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The same nine images, in three classes, in every layout."""
    place = tmp_path_factory.mktemp("layouts")
    names = [f"{folder}/{k}.png" for folder in ("ant", "bee", "cow") for k in range(3)]
    files = {name: encoded(noise(k)) for k, name in enumerate(names)}
    for target in ("folder", "x.zip", "x.tar", "x.tar.gz", "x.tgz"):
        write(place / target, files)
    write(place / "backwards.zip", dict(reversed(files.items())))
    numbered = {}
    for k, (name, data) in enumerate(files.items()):
        numbered |= {f"./{name}": data, f"./{name[:-4]}.cls": f"{k // 3}\n".encode(), f"./{name[:-4]}.json": b"{}"}
    write(place / "numbered.tar", numbered)
    for part in range(3):
        write(place / f"shard-{part}.tar", dict(list(numbered.items())[part * 9 : part * 9 + 9]))
    return place


@pytest.mark.parametrize("labels", [None, "folder"])
def test_every_layout_gives_the_same_arrays(layouts, labels):
    parts = read_images(layouts / "folder", labels=labels, test_share=0.3)
    for layout in ("x.zip", "backwards.zip", "x.tar", "x.tar.gz", "x.tgz", "numbered.tar", "shard-*.tar"):
        assert same(parts, read_images(layouts / layout, labels=labels, test_share=0.3)), layout
    assert [len(parts[part][1]) for part in PARTS] == [6, 3]
    together = {image.tobytes(): label for part in PARTS for image, label in zip(*parts[part])}
    assert together == {noise(k).transpose(2, 0, 1).tobytes(): k // 3 if labels else 0 for k in range(9)}
    assert [array.dtype for array in parts["test"]] == [np.uint8, np.int64]
    assert not same(parts, read_images(layouts / "folder", labels=labels, test_share=0.3, seed=1))


def test_hidden_files_links_and_dangerous_names_are_passed_over(tmp_path, layouts):
    good = dict(archives.members(layouts / "folder", lambda name: True))
    bad = encoded(noise(99))
    path = tmp_path / "odd.tar"
    outside = tmp_path / "outside.png"
    outside.write_bytes(bad)
    with tarfile.open(path, "w") as tar:
        for name, data in good.items():
            add(tar, name, data)
        for name in ("../up.png", "a/../../up.png", "/abs.png", "cow/.hidden.png", "__MACOSX/cow/1.png"):
            add(tar, name, bad)
        add(tar, "cow/soft.png", type=tarfile.SYMTYPE, linkname=str(outside))
        add(tar, "cow/hard.png", type=tarfile.LNKTYPE, linkname="cow/0.png")
        add(tar, "folder.png", type=tarfile.DIRTYPE)
        add(tar, "cow/notes.text", b"no image")
    packed = tmp_path / "odd.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in (good | dict.fromkeys(("../up.png", "/abs.png", "__MACOSX/1.png", ".a/b.png"), bad)).items():
            archive.writestr(name, data)
        link = zipfile.ZipInfo("cow/soft.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(outside))
    expected = read_images(layouts / "folder", labels="folder")
    assert same(expected, read_images(path, labels="folder"))
    assert same(expected, read_images(packed, labels="folder"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.tar", "odd.zip", "outside.png"]


def coordinates(height, width):
    """Red 4 × the column, green 4 × the row, blue 7."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([4 * columns, 4 * rows, np.full_like(rows, 7)], -1).astype(np.uint8)


def decoded(tmp_path, data, side, crop=None):
    """An image file's pixels (3, side, side) as the reader gives them."""
    write(tmp_path / "one", {"a.png": data, "b.png": data})
    parts = read_images(tmp_path / "one", side=side, crop=crop)
    assert same({"train": parts["test"], "test": parts["train"]}, parts)
    return parts["train"][0][0]


def test_crop_and_resize(tmp_path):
    data = encoded(coordinates(30, 20))
    columns, rows = np.arange(5, 15), np.arange(10, 20)
    red, green, blue = decoded(tmp_path, data, 10, crop=10)
    assert np.array_equal(red, np.broadcast_to(4 * columns, (10, 10)))
    assert np.array_equal(green, np.broadcast_to(4 * rows[:, None], (10, 10)))
    assert (blue == 7).all()
    red, green, _ = decoded(tmp_path, data, 20)
    assert np.array_equal(green[:, 0], 4 * np.arange(5, 25))
    assert np.array_equal(red[0], 4 * np.arange(20))
    # A symmetric filter keeps a ramp: pixel i of the half size lies at 2i + 0.5.
    red, green, _ = decoded(tmp_path, data, 10)
    assert np.array_equal(red[5, 2:-2], 8 * np.arange(2, 8) + 2)
    assert np.array_equal(green[2:-2, 5], 8 * np.arange(2, 8) + 22)
    refused(r"a\.png: 20×30 pixels, smaller than the crop of 21", read_images, tmp_path / "one", crop=21)


def test_lanczos_to_shrink_and_bicubic_to_enlarge(tmp_path):
    pixels = noise(0, 16, 16)
    filters = Image.Resampling

    def theirs(side, kind):
        return np.asarray(Image.fromarray(pixels).resize((side, side), kind)).transpose(2, 0, 1)

    for side, right, wrong in ((6, filters.LANCZOS, filters.BICUBIC), (24, filters.BICUBIC, filters.LANCZOS)):
        mine = decoded(tmp_path, encoded(pixels), side)
        assert np.array_equal(mine, theirs(side, right))
        assert not np.array_equal(mine, theirs(side, wrong))


def test_kinds_of_images(tmp_path):
    pixels = noise(3)
    grey = pixels[..., 0]
    assert np.array_equal(decoded(tmp_path, encoded(grey), 12), np.stack([grey] * 3))
    for kind, keys in (("BMP", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(decoded(tmp_path, encoded(pixels, kind, **keys), 12), pixels.transpose(2, 0, 1))
    turned = Image.Exif()
    turned[0x0112] = 6
    assert np.array_equal(decoded(tmp_path, encoded(pixels, exif=turned), 12), np.rot90(pixels, -1).transpose(2, 0, 1))
    deep = np.full((12, 12), 40_000, np.uint16)
    refused("a.png: cannot be read .pixels of mode I;16, allowed: 8 bits", decoded, tmp_path, encoded(deep), 12)
    smooth = np.full((12, 12, 3), 100, np.uint8)
    files = {
        "a.JPG": encoded(smooth, "JPEG"),
        "b.c.jpeg": encoded(smooth, "JPEG"),
        "notes.txt": b"",
        "c.svg": b"<svg/>",
    }
    parts = read_images(write(tmp_path / "mixed", files))
    assert [len(parts[part][1]) for part in PARTS] == [1, 1]
    assert abs(parts["test"][0].astype(int) - 100).max() <= 1


@pytest.mark.parametrize("place", ["folder", "x.zip", "x.tar", "x.tgz"])
def test_a_damaged_image_is_named(tmp_path, place):
    whole = encoded(noise(0, 40, 40))
    for data in (b"", b"junk", whole[:20], whole[: len(whole) // 2], whole[:-40] + b"\0" * 40):
        source = write(tmp_path / place, {"k/a.png": whole, "k/b.png": data})
        refused(rf"{place}(/|: )k/b\.png: cannot be read \(.*\); replace or remove it", read_images, source)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"BM", b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBPVP8 "]),
)
def test_any_bytes_for_an_image(tmp_path, data, start):
    refused(r"a\.png: ", read_images, write(tmp_path / "any", {"a.png": start + data}))


def test_cut_or_damaged_archives_never_give_other_images(tmp_path, layouts):
    """An archive with one end missing or one bit wrong is refused, or it reads the same."""
    expected = read_images(layouts / "folder")
    rng = np.random.default_rng(4)
    for name in ("x.tar", "x.tgz", "x.zip"):
        data = (layouts / name).read_bytes()
        cuts = [data[:at] for at in rng.integers(0, len(data), 25)] + [data[: at * 512] for at in range(0, 20)]
        flips = []
        for at in rng.integers(0, len(data), 40):
            damaged = bytearray(data)
            damaged[at] ^= 1 << int(rng.integers(8))
            flips.append(bytes(damaged))
        refusals = 0
        for content in cuts + (flips if name != "x.tar" else []):
            (tmp_path / name).write_bytes(content)
            try:
                assert same(read_images(tmp_path / name), expected)
            except StorageError as error:
                refusals += 1
                assert "\n" not in str(error)
                assert name in str(error)
        assert refusals > 20
    tar = (layouts / "x.tar").read_bytes()
    end = tar.rindex(b"IEND") // 512 * 512 + 512
    (tmp_path / "x.tar").write_bytes(tar[:end])
    refused(r"x\.tar: cannot be read \(damaged or cut off", read_images, tmp_path / "x.tar")


def test_the_sum_at_the_end_of_a_gzipped_tar_is_checked(tmp_path):
    pixels = noise(0, 40, 40)
    source = write(tmp_path / "x.tar", {f"{k}.bmp": encoded(pixels, "BMP") for k in range(2)})
    data = bytearray(gzip.compress(source.read_bytes(), 0))
    packed = source.rename(tmp_path / "x.tgz")
    packed.write_bytes(data)
    assert np.array_equal(read_images(packed, side=40)["train"][0][0], pixels.transpose(2, 0, 1))
    data[2000] ^= 1
    packed.write_bytes(data)
    refused(r"x\.tgz: cannot be read .CRC check failed", read_images, packed, side=40)


def test_only_what_is_needed_is_read(tmp_path, layouts, monkeypatch):
    members, opened = archives.members, set()

    def watched(*args):
        for name, data in members(*args):
            opened.update({Path(name).suffix} if data is not None else ())
            yield name, data

    sources = caption_layouts(tmp_path)
    monkeypatch.setattr(archives, "members", watched)
    for function, expected in (
        (lambda: list(datasets.captioned(str(sources["csv"]), 12)), {".csv", ".png"}),
        (lambda: list(datasets.captioned(str(sources["archive"]), 12)), {".csv", ".png"}),
        (lambda: list(datasets.captioned(str(sources["txt"]), 12)), {".txt", ".json", ".png"}),
        (lambda: read_images(layouts / "numbered.tar"), {".png"}),
        (lambda: read_images(layouts / "numbered.tar", labels="folder"), {".png", ".cls"}),
    ):
        opened.clear()
        function()
        assert opened == expected


def test_sources_that_give_nothing(tmp_path, layouts):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(
        "empty: holds no images; allowed: bmp, gif, jfif, jpe, jpeg, jpg, png, tif, tiff, webp$", read_images, empty
    )
    refused("none: no such folder or archive; allowed: a folder, .tar", read_images, tmp_path / "none")
    refused("no such folder or archive", read_images, tmp_path / "*.tar")
    (empty / "x.rar").touch()
    refused("x.rar: no such folder or archive; allowed: .*zip", read_images, empty / "x.rar")
    refused("0.png: has no class; allowed: in a sub-folder", read_images, layouts / "folder" / "ant", labels="folder")
    for share in (0.01, 0.99):
        with pytest.raises(MismatchError, match=f"test_share {share} of 9 images leaves train or test empty"):
            read_images(layouts / "folder", test_share=share)


def test_samples_of_a_tar(tmp_path):
    image = encoded(noise(0))
    for files, pattern in (
        ({"a.png": image, "a.jpg": image, "a.cls": b"1"}, r"a\.png: its sample has several images"),
        ({"a.png": image, "a.cls": b"two"}, r"a\.png: .cls member b'two', allowed: a number"),
        ({"a.png": image, "a.cls": b""}, r"a\.png: .cls member b''"),
        ({"k/a.png": image, "k/a.cls": b"1", "k/b.png": image}, "some images have a .cls member and some have none"),
    ):
        refused(pattern, read_images, write(tmp_path / "x.tar", files), labels="folder")
    files = {"a.png": image, "a.seg.png": b"a mask", "a.cls": b"12", "b.cls": b"3", "c.cls": b"7", "c.png": image}
    parts = read_images(write(tmp_path / "x.tar", files), labels="folder")
    assert sorted([*parts["train"][1], *parts["test"][1]]) == [0, 1]  # of .cls 7 and 12


CAPTIONS = ['a "red", boat', "zwei Bäume\r\n木\u2028nebeneinander", ""]


def caption_layouts(place):
    pictures = {f"{k:03}.png": encoded(noise(k, 9, 12)) for k in range(3)}
    table = "\ufefffile_name,score,text\r\n" + "".join(
        f'{n},6.5,"{text.replace(chr(34), chr(34) * 2)}"\r\n' for n, text in reversed(list(zip(pictures, CAPTIONS)))
    )
    lines = "\n".join(
        json.dumps({"file_name": n, "caption": t}, ensure_ascii=False) for n, t in zip(pictures, CAPTIONS)
    )
    with_table = pictures | {"extra.png": b"not named, not read", "metadata.csv": table.encode()}
    inside = {f"./set/train/{n}": d for n, d in with_table.items()}
    text, entry = {}, {}
    for (name, data), caption in zip(pictures.items(), CAPTIONS):
        text |= {name: data, f"{name[:3]}.txt": f"{caption}\n".encode(), f"{name[:3]}.json": b'{"caption": "unused"}'}
        entry |= {f"{name[:3]}.json": json.dumps({"caption": caption, "key": name}).encode(), name: data}
    return {
        "csv": write(place / "csv", with_table),
        "jsonl": write(place / "jsonl", pictures | {"metadata.jsonl": lines.encode()}),
        "deep": write(place / "deep", {f"train/{n}": d for n, d in with_table.items()}),
        "zip": write(place / "set.zip", inside),
        "archive": write(place / "set.tar.gz", inside),
        "first": write(place / "first.tar.gz", dict(sorted(inside.items(), reverse=True)[:1]) | inside),
        "txt": write(place / "txt.tar", text),
        "json": write(place / "json.tar", entry),
    }


def test_captions_in_every_layout(tmp_path):
    expected = [noise(k, 9, 12)[:, 1:10].transpose(2, 0, 1) for k in range(3)]
    for layout, source in caption_layouts(tmp_path).items():
        found = list(datasets.captioned(str(source), 9))
        assert [caption for _, _, caption in found] == CAPTIONS, layout
        assert [Path(name).name for name, _, _ in found] == ["000.png", "001.png", "002.png"]
        for (_, image, _), pixels in zip(found, expected):
            assert image.dtype == np.uint8
            assert np.array_equal(image, pixels)
    write(tmp_path / "more.tar", {"9.png": encoded(noise(9)), "9.txt": b"nine"})
    pattern = str(tmp_path / "[jm]*.tar")
    assert [caption for _, _, caption in datasets.captioned(pattern, 4)] == [*CAPTIONS, "nine"]
    assert next(iter(datasets.captioned(pattern, 4)))[1].shape == (3, 4, 4)


def test_captioned_streams_and_names_the_damaged_image(tmp_path):
    files = {"a.png": encoded(noise(0)), "a.txt": b"fine", "b.png": b"junk", "b.txt": b"not"}
    source = str(write(tmp_path / "x.tar", files))
    stream = datasets.captioned(source, 12)
    name, image, caption = next(stream)
    assert (name, image.shape, caption) == ("a.png", (3, 12, 12), "fine")
    refused(r"x\.tar: b\.png: cannot be read", next, stream)


@pytest.mark.parametrize("place", ["folder", "x.tar"])
def test_captions_missing_or_damaged(tmp_path, place):
    image = encoded(noise(0))
    row = '{"file_name": "a.png", "text": "t"}\n'
    for number, (name, text, pattern) in enumerate(
        (
            (
                "metadata.csv",
                "file_name,title\na.png,t\n",
                "row 1 without file_name and text; allowed: file_name, and text",
            ),
            ("metadata.csv", "file_name,text\na.png\n", "row 1: 1 fields, the header has 2"),
            ("metadata.csv", "file_name,text\nb.png,t\n", "b.png: named in the metadata, but not there"),
            ("metadata.csv", "file_name,text\n../a.png,t\n", "named in the metadata, but not there"),
            ("metadata.csv", 'file_name,text\na.png,"t\n', "metadata.csv: cannot be read"),
            ("metadata.csv", "file_name,text\n", "no caption beside it|holds no images with captions"),
            ("metadata.jsonl", row + row, "metadata.jsonl: a.png has two captions"),
            ("metadata.jsonl", row + "{", r"metadata.jsonl: cannot be read \(Expecting"),
            ("metadata.jsonl", "[1]", "metadata.jsonl: cannot be read"),
            ("metadata.jsonl", "[" * 100_000, "metadata.jsonl: cannot be read"),
            ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', "row 1 without"),
            ("metadata.jsonl", '{"file_name": 3, "text": "t"}', "row 1 without"),
            ("metadata.jsonl", b"\xff\xfea".decode("latin-1"), "metadata.jsonl: cannot be read"),
            ("readme.md", "", "no caption beside it|holds no images with captions; allowed: metadata.csv"),
        )
    ):
        source = write(tmp_path / str(number), {}) if place == "folder" else tmp_path
        source = write(source / place, {"a.png": image, name: text.encode("latin-1")})
        refused(pattern, list, datasets.captioned(str(source), 12))


def test_captions_beside_images_damaged(tmp_path):
    image = encoded(noise(0))
    for files, pattern in (
        ({"a.png": image}, r"a\.png: cannot be read \(no caption beside it; allowed: .txt"),
        ({"a.png": image, "a.json": b'{"url": ""}'}, "no caption beside it"),
        ({"a.png": image, "a.json": b"[]"}, r"a\.png: cannot be read"),
        ({"a.png": image, "a.txt": b"\xff"}, r"a\.png: cannot be read .*utf-8"),
        ({"a.png": image, "b.txt": b"b"}, "no caption beside it"),
        ({"a.txt": b"alone"}, "holds no images with captions"),
    ):
        source = str(write(tmp_path / "x.tar", files))
        refused(pattern, list, datasets.captioned(source, 12))


def test_read_calls_the_reader_of_the_kind(layouts, monkeypatch):
    keys = {"source": str(layouts / "folder"), "side": 8, "crop": 10, "labels": "folder", "test_share": 0.4, "seed": 3}
    assert same(datasets.read({"kind": "images", **keys}), datasets.images(**keys))
    for kind in ("fashion", "cifar10", "imagenet32"):
        monkeypatch.setattr(datasets, kind, lambda folder, kind=kind: (kind, folder))
        assert datasets.read({"kind": kind, "folder": "there"}) == (kind, "there")
    with pytest.raises(ConfigError, match=r"data\.kind: 'captions' .* allowed: fashion, cifar10, imagenet32, images"):
        datasets.read({"kind": "captions"})
