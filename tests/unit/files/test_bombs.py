"""Small files that ask for much are refused in one line, in little memory and time."""

import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import bombs
import pytest
import torch
from consistency import networks
from consistency.data import archives, datasets
from consistency.errors import ConsistencyError
from consistency.evaluate import extractors
from consistency.files import bounds, hashes, storage
from consistency.flow.schedules import VPSchedule
from consistency.networks import classifier, latents
from consistency.runtime.provenance import own_files
from consistency.students import maps
from users import encoded, noise, write

WORKFLOW = Path(datasets.__file__).parents[2]


@contextmanager
def light(megabytes=60, seconds=10):
    """What runs inside takes little memory (of Python and NumPy) and processor time, and never waits for a FIFO."""

    def too_long(number, _):
        pytest.fail(f"more than {seconds} s of work" if number == signal.SIGPROF else f"{10 * seconds} s: it waits")

    before = {number: signal.signal(number, too_long) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(10 * seconds)  # where other processes have the processors, little work takes long
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert peak < megabytes, f"{peak:.0f} MB taken, at most {megabytes} expected"


def refused(pattern, function, *args, megabytes=60, **keys):
    """The function stops soon, with an error of one line that matches."""
    with light(megabytes), pytest.raises(ConsistencyError, match=pattern) as caught:
        function(*args, **keys)
    assert "\n" not in str(caught.value)


def images(source):
    return datasets.images(str(source), 12, None, None, 0.5, 0)


def captions(source):
    return [caption for _, _, caption in datasets.captioned(source, 12)]


def made(path, content):
    path.write_bytes(content)
    return path


# Archives


def test_a_zip_is_read_no_further_than_it_declares(tmp_path):
    huge = made(tmp_path / "a.zip", bombs.lying_zip("a.png", b"", 0xFFFFFFF0))
    refused(r"a\.zip: a\.png: 4,295 MB, allowed: at most 400 MB$", images, huge)
    sizes = struct.pack("<HHQ", 1, 8, 1 << 60)
    zip64 = made(tmp_path / "b.zip", bombs.lying_zip("a.png", b"", 0xFFFFFFFF, sizes))
    refused(r"b\.zip: a\.png: 1,152,921,504,607 MB, allowed: at most 400 MB$", images, zip64)
    lying = made(tmp_path / "c.zip", bombs.lying_zip("a.png", bytes(200_000_000), 100))
    refused(r"c\.zip: cannot be read \(Bad CRC-32", images, lying, megabytes=2)


def test_zips_whose_members_share_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "UNPACKED", 10 * bounds.MB)
    source = made(tmp_path / "a.zip", bombs.overlapping_zip(200, 1_000_000))
    assert source.stat().st_size < 50_000
    with zipfile.ZipFile(source) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) > 200_000_000
    # 0000.png is no image, so only readers that ask for bytes alone come to the end
    refused(
        "unpacks to 15 MB or more, allowed: 15 MB|Overlapped entries|Bad CRC",
        lambda: list(archives.members(source, lambda name: True)),
    )
    monkeypatch.setattr(bounds, "UNPACKED", 0)
    monkeypatch.setattr(bounds, "RATIO", 2)
    refused(r"unpacks to 1\.0 MB or more, allowed: 0", images, source)


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_unpack_without_a_bound(tmp_path, how):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", how) as archive:
        archive.writestr("a.png", bytes(100_000_000))
    refused(r"a\.png: compression (bzip2|lzma), allowed: store, deflate", images, tmp_path / "a.zip", megabytes=2)


def test_the_number_of_members_and_their_names(tmp_path, monkeypatch):
    files = {f"{k:03}.png": encoded(noise(k)) for k in range(8)}
    monkeypatch.setattr(bounds, "MEMBERS", 8)
    for name in ("a.zip", "a.tar", "a.tgz"):
        assert len(list(archives.members(write(tmp_path / name, files), lambda name: False))) == 8
    monkeypatch.setattr(bounds, "MEMBERS", 7)
    for name in ("a.zip", "a.tar", "a.tgz"):
        refused(rf"{name}: 8 members or more, allowed: at most 7; split it", images, tmp_path / name)
    monkeypatch.setattr(bounds, "MEMBERS", 8)
    monkeypatch.setattr(bounds, "NAMES", 50)
    for name in ("a.zip", "a.tar"):
        refused(rf"{name}: the (list|names) of its members: 0.0 MB, allowed", images, tmp_path / name)


def test_members_of_a_tar_that_are_sparse_or_of_no_size(tmp_path):
    sparse = "a.png: a sparse member, whose zeros are not stored; allowed: whole ones"
    refused(sparse, images, made(tmp_path / "a.tar", bombs.sparse_tar(200 << 30)))
    map_of = {"GNU_sparse_major": "1", "GNU_sparse_minor": "0", "GNU_sparse_realsize": str(200 << 30)}
    for number, keys in enumerate(
        (
            map_of,
            {"GNU_sparse_size": "200000000000", "GNU_sparse_numblocks": "0"},
            {"GNU_sparse_map": "0,0", "GNU_sparse_size": "200000000000"},
        )
    ):
        source = made(tmp_path / f"{number}.tar", bombs.pax_tar(**keys))
        refused("a sparse member|cannot be read", images, source)
    back = bombs.tar_header("a.png", 0, size_field=b"\xff" * 11 + b"\0") + bytes(1024)  # a circle for tarfile
    refused("its size is -256, allowed: 0 and more", images, made(tmp_path / "back.tar", back))
    refused("its size is -1024, allowed: 0", images, made(tmp_path / "pax.tar", bombs.pax_tar(size="-1024")))


def test_headers_of_a_tar_of_any_length(tmp_path):
    zeros = bytes(1 << 20)
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        start = bombs.tar_header("x", 60 << 20, kind)
        source = bombs.packed(tmp_path / "a.tar.gz", (start, 1), (zeros, 60))
        refused("a member with headers of more than 1.0 MB, allowed: at most that", images, source, megabytes=5)
    count = b"1000000000\n"  # of a sparse member's map, which tarfile reads until it has so many numbers
    whole = bombs.pax_tar(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize="9")[:1024]
    start = whole + bombs.tar_header("a.png", 300 << 20) + count
    source = bombs.packed(tmp_path / "b.tar.gz", (start, 1), (b"1" * (1 << 20), 60))
    refused("headers of more than 1.0 MB|sparse|cannot be read", images, source, megabytes=10)


def test_a_packed_tar_is_unpacked_up_to_a_multiple_of_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "UNPACKED", 20 * bounds.MB)
    zeros = bytes(1 << 20)
    unwanted = bombs.packed(tmp_path / "a.tar.gz", (bombs.tar_header("a.bin", 300 << 20), 1), (zeros, 300))
    most = (20 * bounds.MB + 100 * unwanted.stat().st_size) / 1e6
    refused(rf"unpacks to 5\d MB or more, allowed: {most:.0f} MB \(20 MB and 100 times its own size", images, unwanted)
    end = bombs.packed(tmp_path / "b.tar.gz", (bytes(1024), 1), (zeros, 300))  # after the archive's end
    refused("unpacks to 5. MB or more", images, end)
    large = bombs.packed(tmp_path / "c.tar.gz", (bombs.tar_header("a.png", 500_000_000), 1))
    every = lambda: list(archives.members(large, lambda name: True))  # noqa: E731
    refused(r"c\.tar\.gz: a\.png: 500 MB, allowed: at most 400 MB", every)


def test_labels_and_captions_beside_images(tmp_path, monkeypatch):
    image = encoded(noise(0))
    for kind in ("cls", "txt", "json"):
        source = write(tmp_path / "a.tar", {"a.png": image, f"a.{kind}": b"1" * 2_000_000})
        read = captions if kind != "cls" else lambda path: datasets.images(path, 12, None, "folder", 0.5, 0)
        refused(rf"a\.tar: a\.{kind}: 2\.0 MB, allowed: at most 1\.0 MB", read, str(source))
    monkeypatch.setattr(bounds, "LABELS", 500_000)
    files = {f"{k}.{kind}": content for k in range(4) for kind, content in (("png", image), ("txt", b"x" * 200_000))}
    refused("more than 0.5 MB of labels and captions", captions, str(write(tmp_path / "b.tar", files)))


def test_metadata(tmp_path):
    place = tmp_path / "mine"
    (place / "x").mkdir(parents=True)
    (place / "a.png").write_bytes(encoded(noise(0)))
    table = place / "metadata.csv"
    with open(table, "wb") as file:
        file.truncate(10**12)
    refused(r"metadata\.csv: 1,000,000 MB, allowed: at most 128 MB", captions, str(place))
    table.write_bytes(b"file_name,text\na.png," + b"x" * 2_000_000)
    refused(
        r"metadata\.csv: cannot be read \(line 2: 2,000,006 characters, allowed: at most 1,000,000",
        captions,
        str(place),
    )
    table.write_bytes(b"file_name,text\n" + b"a.png,x\n" * 10**6)  # read line by line
    refused("a.png has two captions", captions, str(place), megabytes=40)
    table.unlink()
    for content, pattern in (
        (b"[]," * 10**6, r"line 1: 3,000,000 characters"),
        (bombs.nested(10_000), "recursion"),
        (b"9" * 5000, "4300 digits"),
    ):
        (place / "metadata.jsonl").write_bytes(content)
        refused(pattern, captions, str(place))


# Images


def decode(data):
    archive = Path("x.zip")
    from consistency.data.account import Account
    from consistency.data.images import decode

    return decode(data, archive, "a", 12, None, Account("x"))


TEXT = bombs.chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000), 9))
PROFILE = bombs.chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100_000_000), 9))


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (bombs.png(13_300, 13_300), "13300×13300 pixels, allowed: at most 120,000,000"),
        (bombs.png(2**31 - 1, 2**31 - 1), "more than 178,956,970 pixels, allowed: at most 120,000,000"),
        (bombs.png(11_000, 11_000), "11000×11000 pixels"),
        (bombs.bmp(2**31 - 1, 2**31 - 1), "more than 178,956,970 pixels"),
        (bombs.bmp(12_000, -12_000), "12000×12000 pixels"),
        (bombs.gif(65_535, 65_535, 1), "more than 178,956,970 pixels"),
        (bombs.webp(16_384, 16_384), "pixels, allowed: at most 120,000,000|cannot be read"),
        (bombs.gif(1, 1, 1_000_000), "several frames or pages, allowed: one"),
        (bombs.tiff(100_000), "several frames or pages, allowed: one"),
        (bombs.png(4, 4, TEXT, pixels=bytes(52)), "MAX_TEXT_CHUNK"),
        (bombs.png(4, 4, PROFILE, pixels=bytes(52)), "too large|MAX_TEXT_CHUNK"),
    ],
    ids=[
        "png_177MP",
        "png_2e62",
        "png_121MP",
        "bmp",
        "bmp_144MP",
        "gif",
        "webp",
        "gif_frames",
        "tiff_pages",
        "ztxt",
        "iccp",
    ],
)
def test_images_that_declare_more_than_they_hold(content, pattern):
    assert len(content) < 20_000_000
    refused(pattern, decode, content)


@pytest.mark.filterwarnings("ignore:Tag data larger")
def test_tags_of_a_tiff_that_all_name_the_same_bytes():
    """2,000 of 1 MB each: Pillow reads no more than the file has."""
    with light(20):
        assert decode(bombs.tiff(1, repeated=2000)).shape == (3, 12, 12)


def test_a_photograph_of_100_megapixels_is_read_in_little_more_than_its_pixels():
    code = """if True:
        import io, resource, sys, warnings
        import bombs
        from consistency.data.account import Account
        from consistency.data.images import decode
        from pathlib import Path
        warnings.simplefilter("error")
        row = bytes([0]) + bytes([10, 20, 30]) * 11_656
        data = bombs.png(11_656, 8_742, pixels=row * 8_742)
        image = decode(data, Path("x.zip"), "a.png", 16, None, Account("x"))
        assert (image == [[[10]], [[20]], [[30]]]).all(), image
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
    """
    path = os.pathsep.join([str(WORKFLOW), str(Path(bombs.__file__).parent)])
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 1300, f"{run.stdout} MB"


def test_the_largest_images_that_are_allowed(monkeypatch):
    monkeypatch.setattr(bounds, "PIXELS", 12 * 12)
    assert decode(encoded(noise(0))).shape == (3, 12, 12)
    refused("13×12 pixels, allowed: at most 144", decode, encoded(noise(0, 12, 13)))


def test_a_sparse_image_in_a_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    with open(tmp_path / "mine" / "a.png", "wb") as file:
        file.truncate(200 << 30)
    refused(r"a\.png: 214,748 MB, allowed: at most 400 MB", images, tmp_path / "mine")


# Data sets


def test_fashion_that_unpacks_to_more(tmp_path):
    bombs.packed(tmp_path / "train-images-idx3-ubyte.gz", (bytes(1 << 20), 200))
    pattern = r"holds more than 47,040,016 bytes, the largest official file's"
    refused(pattern, datasets.fashion, str(tmp_path), megabytes=150)
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    with open(tmp_path / "train-images-idx3-ubyte", "wb") as file:
        file.truncate(10**12)
    refused(pattern, datasets.fashion, str(tmp_path), megabytes=150)


def test_arrays_that_declare_more_than_they_hold(tmp_path):
    labels = bombs.npy((4,)) + bytes([1, 2, 3, 4])
    for content in (bombs.npy((10**15,)), bombs.npy((10**9, 3072)), bombs.npy((4, 3072), "|V1000000000")):
        for name in [f"train_data_batch_{k}" for k in range(1, 11)] + ["val_data"]:
            bombs.npz(tmp_path / f"{name}.npz", labels=labels, data=content)
        refused(r"batch_1\.npz: .*data: its header declares \(.*more than it holds", datasets.imagenet32, str(tmp_path))
    first = tmp_path / "train_data_batch_1.npz"
    first.write_bytes(bombs.lying_zip("labels.npy", bytes(1000), 0xFFFFFFF0))
    refused(r"labels: 4,295 MB, allowed: at most 512 MB", datasets.imagenet32, str(tmp_path))
    bombs.npz(first, labels=bombs.npy((10**6,)) + bytes(10**6), data=b"")
    refused("images of 1,000,000 labels: 3,072 MB, allowed: at most 512 MB", datasets.imagenet32, str(tmp_path))


# The pipeline's own formats


def test_json_and_tables(tmp_path):
    file = tmp_path / "a.json"
    with open(file, "wb") as opened:
        opened.truncate(10**12)
    for read in (storage.read_json, storage.read_records):
        refused(r"a\.json: 1,000,000 MB, allowed: at most 64 MB", read, file)
    refused(r"a\.json: 1,000,000 MB, allowed: at most 1,000 MB", storage.read_table, file)
    refused(r"1,000,000 MB, allowed: at most 1\.0 MB", storage.read_json, file, sealed=False)
    file.write_bytes(bombs.nested(10_000))
    refused("is not valid JSON", storage.read_json, file)
    (tmp_path / "a.json.sha256").write_bytes(b"")


def test_headers_of_safetensors(tmp_path):
    file = made(tmp_path / "a.safetensors", bombs.safetensors(b" " * 20_000_000))
    refused(r"the list of its tensors: 20 MB, allowed: at most 16 MB", storage.load_tensors, file)
    with open(file, "r+b") as opened:
        opened.write((2**62).to_bytes(8, "little"))
    refused("truncated or damaged", storage.load_tensors, file)
    refused("is not valid JSON", storage.load_tensors, made(file, bombs.safetensors(bombs.nested(10_000))))


# Networks


MLP = {"kind": "mlp", "width": 8, "depth": 2}
UNET = {"kind": "unet", "channels": [8, 8], "layers_per_block": 1}


def network(folder, kind):
    networks.save(networks.build(kind, (1, 8, 8), 2, 1000, 0), folder)
    (folder / "SHA256SUMS").unlink()
    return folder / "config.json"


@pytest.mark.parametrize(
    ("key", "value", "size"),
    [
        ("width", 10**9, 8),
        ("depth", 10**9, 2),
        ("classes", 10**9, 2),
        ("sample_shape", [10**9, 8, 8], 64),
        ("width", 30_000, 8),
        ("width", None, 8),
        ("width", -8, 8),
        ("depth", 2.0, 2),
        ("width", 10**4000, 8),
    ],
)
def test_an_mlp_that_asks_for_more_than_its_weights(tmp_path, key, value, size):
    bombs.changed(network(tmp_path, MLP), **{key: value})
    refused(rf"/config\.json: {key} is .*, but its weights have {size}$", networks.load, tmp_path)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"layers_per_block": 10**9}, "layers_per_block is 1000000000, allowed: whole numbers up to 1,000,000"),
        ({"layers_per_block": 900}, "layers_per_block and .* ask for 1,800 layers, allowed: at most 1,000"),
        ({"block_out_channels": [8] * 300, "layers_per_block": 4}, "ask for 1,200 layers"),
        ({"block_out_channels": [10**6, 10**6]}, "asks for a network of 262,.* values, but its weights have"),
        ({"block_out_channels": [30_000, 30_000]}, "asks for a network of .* values"),
        ({"num_class_embeds": 10**6}, "asks for a network of 32,017,609 values"),
        ({"in_channels": 10**6}, "asks for a network of"),
        ({"sample_size": 10**12}, "sample_size is 1000000000000"),
        ({"x": {"y": [1, {"z": 10**3000}]}}, r"x\.y\.z is 10+…, allowed: whole numbers"),
    ],
)
def test_a_unet_that_asks_for_more_than_its_weights(tmp_path, changes, pattern):
    bombs.changed(network(tmp_path, UNET), **changes)
    refused(rf"/config\.json: .*{pattern}", networks.load, tmp_path)


def test_a_pipelines_other_models(tmp_path):
    import tiny

    pipeline = tiny.sdxl(tmp_path / "sdxl")
    bombs.changed(pipeline / "unet" / "config.json", transformer_layers_per_block=[10, 900])
    refused("ask for 1,800 layers", networks.load, pipeline / "unet")
    bombs.changed(pipeline / "vae" / "config.json", latent_channels=10**6)
    cpu = torch.device("cpu")
    refused("vae/config.json: asks for a network of", latents._vae, pipeline / "vae", cpu, "no")
    storage.write_json(tmp_path / "captions.json", {"captions": ["a cat"]})
    told = (tmp_path / "out", tmp_path / "captions.json", pipeline, 32, 1, "no")
    config = pipeline / "text_encoder" / "config.json"
    text = config.read_text()
    for key, value in (("num_hidden_layers", 10**9), ("vocab_size", 10**6), ("num_labels", 10**6)):
        bombs.changed(config, **{key: value})
        refused(r"text_encoder/config\.json: (asks for a network|num_\w+ is)", latents.encode_prompts, *told)
        config.write_text(text)
    bombs.changed(pipeline / "scheduler" / "scheduler_config.json", num_train_timesteps=10**9)
    refused("scheduler_config.json: num_train_timesteps is 1000000000", latents.encode_prompts, *told)


def test_extractors_and_classifiers(tmp_path):
    import tiny

    folder = tiny.clip_folder(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    for part, key, value in (
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "hidden_size", 10**6),
        ("vision_config", "num_channels", 10**6),
        ("vision_config", "num_labels", 10**6),
    ):
        bombs.changed(folder / "config.json", **{part: config[part] | {key: value}})
        refused(r"clip/config\.json: ", extractors.load, "clip", folder)
    with storage.atomic(tmp_path / "classifier") as place:
        classifier.Classifier([1, 8, 8], 3, 4, 16).save_pretrained(place)
        storage.write_json(place / "card.json", {"name": "x"})
    (tmp_path / "classifier" / "SHA256SUMS").unlink()
    assert classifier.load(tmp_path / "classifier")[0].classes == 3
    for key, value in (
        ("feature_size", 10**9),
        ("channels", 10**6),
        ("classes", 10**9),
        ("sample_shape", [1, 10**5, 8]),
    ):
        text = (tmp_path / "classifier" / "config.json").read_text()
        bombs.changed(tmp_path / "classifier" / "config.json", **{key: value})
        refused(rf"config\.json: {key} is .*, but its weights have", classifier.load, tmp_path / "classifier")
        (tmp_path / "classifier" / "config.json").write_text(text)


def test_adapters(tmp_path):
    network(tmp_path / "teacher", MLP)
    schedule = VPSchedule(steps=1000, kind="linear", beta_start=1e-4, beta_end=0.02)
    student = maps.FlowMap(maps.create(tmp_path / "teacher", "lora", 4), schedule)
    maps.save(student, tmp_path / "student", {"name": "x"})
    (tmp_path / "student" / "SHA256SUMS").unlink()
    load = partial(maps.load, tmp_path / "student", schedule, base=tmp_path / "teacher")
    load()
    for changes in ({"r": 10**9}, {"r": 10**5}, {"rank_pattern": {"inward": 10**9}}):
        text = (tmp_path / "student" / "adapter_config.json").read_text()
        bombs.changed(tmp_path / "student" / "adapter_config.json", **changes)
        refused(r"adapter_config\.json: .* is 10+, but no side of its weights is above 64", load)
        (tmp_path / "student" / "adapter_config.json").write_text(text)


def test_weights_of_torch_that_unpack_to_more(tmp_path):
    config = network(tmp_path, UNET)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with zipfile.ZipFile(tmp_path / "diffusion_pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1_000_000))
    assert config.is_file()
    refused("diffusion_pytorch_model.bin: has compressed members", networks.load, tmp_path)
    state = {"layers.0.weight": torch.zeros(1, 1).expand(1024, 10**7)}
    torch.save(state, tmp_path / "a.pth")
    refused("layers.0.weight is larger than the file", extractors.load, "aesthetic", tmp_path)


# Files that are none, and names that lead elsewhere


@pytest.fixture
def teacher(tmp_path):
    network(tmp_path / "teacher", MLP)
    return tmp_path / "teacher"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "extra.json", "sub"])
@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_files_that_would_be_waited_for(teacher, name, kind):
    (teacher / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(teacher / name)
    elif kind == "device":
        os.symlink("/dev/zero", teacher / name)
    else:
        import socket

        there = os.open(teacher, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{there}/{name}")
        os.close(there)
    refused(rf"{name}: (a FIFO, a device or a socket; allowed: a regular file|cannot be read)", networks.load, teacher)


def test_fifos_elsewhere(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (hashes.sha256, bounds.read, storage.read_json, storage.read_sealed, storage.check_tensors):
        refused("pipe: a FIFO, a device or a socket", read, tmp_path / "pipe")
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        os.mkfifo(tmp_path / name)
        refused(rf"{name}: a FIFO, a device or a socket", images, tmp_path / name)
    place = write(tmp_path / "mine", {f"{k}.png": encoded(noise(k)) for k in range(4)})
    os.mkfifo(place / "x.png")
    os.symlink("/dev/zero", place / "y.png")
    with light():
        assert len(images(place)["train"][0]) == 2


@pytest.mark.parametrize("name", ["../../etc/hostname", "/etc/hostname", "sub/../../x", "sub/../link", "a\0b"])
def test_sums_that_name_files_elsewhere(teacher, name):
    os.symlink("/etc/hostname", teacher / "link")
    lines = [
        f"{hashes.sha256(file)}  {file.name}\n" for file in (teacher / "config.json", teacher / "model.safetensors")
    ]
    (teacher / "SHA256SUMS").write_text("".join(lines) + f"{'0' * 64}  {name}\n")
    refused(r"SHA256SUMS: names '.*', which lies elsewhere; allowed: files in", networks.load, teacher)


def test_links_as_snakemakes_cache_leaves_them_are_followed(teacher, tmp_path):
    hashes.write_sums(teacher)
    (tmp_path / "cache").mkdir()
    for file in list(teacher.iterdir()):
        file.rename(tmp_path / "cache" / file.name)
        file.symlink_to(tmp_path / "cache" / file.name)
    networks.load(teacher)
    with open(tmp_path / "cache" / "model.safetensors", "r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\xff")
    refused("damaged: sha256 is", networks.load, teacher)


@pytest.mark.parametrize("name", [".", "./", "sub", "sub/."])
def test_sums_that_name_folders(teacher, name):
    (teacher / "sub").mkdir()
    (teacher / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    refused("SHA256SUMS: damaged|no such file, which SHA256SUMS names", networks.load, teacher)
    with open(teacher / "SHA256SUMS", "a") as sums:
        for file in {path for path in teacher.iterdir() if path.is_file()} - {teacher / "SHA256SUMS"}:
            sums.write(f"{hashes.sha256(file)}  {file.name}\n")
    refused("no such file, which SHA256SUMS names", networks.load, teacher)


def test_an_index_that_names_files_elsewhere(tmp_path):
    network(tmp_path / "teacher", UNET)
    file = tmp_path / "teacher" / "diffusion_pytorch_model.safetensors.index.json"
    os.mkfifo(tmp_path / "pipe")
    for name in ("../pipe", "/etc/hostname", "x.safetensors", 1):
        file.write_text(json.dumps({"weight_map": {"a": name}}))
        refused(r"index\.json: names .*, allowed: files beside it", networks.load, tmp_path / "teacher")


def test_texts_of_a_models_folder(teacher):
    with open(teacher / "tokenizer.json", "wb") as file:
        file.truncate(10**12)
    refused(r"tokenizer\.json: 1,000,000 MB, allowed: at most 64 MB", networks.load, teacher)


def test_links_to_folders_of_links(tmp_path, monkeypatch):
    """Ten folders, each with two links to the next one, are a thousand to who follows them."""
    for level in range(10):
        place = tmp_path / "mine" / f"{level}"
        place.mkdir(parents=True)
        for name in "ab":
            os.symlink(tmp_path / "mine" / f"{level + 1}", place / name)
    write(tmp_path / "mine" / "10", {"0.png": encoded(noise(0))})
    read = (lambda: list(archives.members(tmp_path / "mine", lambda name: False)), lambda: own_files(tmp_path / "mine"))
    assert [len(function()) for function in read] == [2**11 - 1, 2**11 - 1]
    monkeypatch.setattr(bounds, "LINKED", 1000)
    for function in read:
        refused("mine: more than 1,000 folders in it are reached through links, allowed: at most that", function)
