"""Readers of users' files: what users really have is read right, refused in a line, or passed over and told."""

import json
import logging
import os
import zipfile

import numpy as np
import pytest
from consistency.data import datasets, prepare
from consistency.data.account import Account
from consistency.data.images import class_names
from consistency.errors import MismatchError
from consistency.evaluate.measure import measure_data
from consistency.files.storage import load_tensors, read_json
from consistency.flow.noise import draw_noise
from consistency.networks import latents
from PIL import Image
from users import add, encoded, noise, refused, write

SETTINGS = {
    "kind": "images",
    "name": "mine",
    "side": 12,
    "crop": None,
    "labels": "folder",
    "test_share": 0.25,
    "seed": 0,
}


def pictures(*names, first=0):
    """name → bytes of an image of its own."""
    return {name: encoded(noise(first + k)) for k, name in enumerate(names)}


def read(source, labels="folder", side=12):
    """The image of each label (seed of `noise` → label), and the account."""
    account = Account("mine")
    parts = datasets.images(str(source), side, None, labels, 0.5, 0, account)
    known = {noise(k).transpose(2, 0, 1).tobytes(): k for k in range(40)}
    found = [(known[image.tobytes()], int(label)) for part in parts.values() for image, label in zip(*part)]
    return dict(sorted(found)), account


def passed(account):
    """Reason → how many files were passed over."""
    return {reason: entry["count"] for reason, entry in account.record()["passed_over"].items()}


def remarks(account):
    return {what: entry["first"] for what, entry in account.record()["remarks"].items()}


def test_links_in_folders_are_followed(tmp_path):
    write(tmp_path / "mine", pictures("cat/0.png", "cat/1.png"))
    write(tmp_path / "elsewhere", pictures("dog/0.png", "dog/deep/x.png", "one.png", first=2))
    os.symlink(tmp_path / "elsewhere/dog", tmp_path / "mine/dog")
    (tmp_path / "elsewhere/dog/deep/x.png").rename(tmp_path / "elsewhere/dog/x.png")
    os.symlink(tmp_path / "elsewhere/one.png", tmp_path / "mine/cat/one.png")
    found, account = read(tmp_path / "mine")
    assert found == {0: 0, 1: 0, 2: 1, 3: 1, 4: 0}
    assert passed(account) == {}
    os.symlink(tmp_path / "mine", tmp_path / "all")
    assert read(tmp_path / "all")[0] == found


def test_circles_of_links_end_and_are_told(tmp_path):
    write(tmp_path / "mine", pictures("cat/0.png", "dog/0.png"))
    os.symlink("..", tmp_path / "mine/cat/up")
    os.symlink("../cat", tmp_path / "mine/dog/to")
    os.symlink("../dog", tmp_path / "mine/cat/to")
    account = Account("mine")
    datasets.images(str(tmp_path / "mine"), 12, None, None, 0.25, 0, account)
    record = account.record()
    assert record["passed_over"]["a link to a folder that holds it"]["count"] >= 3
    assert record["remarks"]["images that are there twice"]["count"] == 2


def test_a_link_that_leads_nowhere_and_a_folder_that_cannot_be_read(tmp_path):
    place = write(tmp_path / "mine", pictures("cat/0.png", "dog/0.png"))
    os.symlink(tmp_path / "gone.png", place / "cat/1.png")
    refused("cat/1.png: is a link that leads nowhere; restore what it names, or remove it", read, place)
    (place / "cat/1.png").unlink()
    os.mkfifo(place / "cat/pipe.png")
    assert passed(read(place)[1]) == {"not a file": 1}


@pytest.mark.parametrize("place", ["folder", "x.zip", "x.tar"])
def test_what_is_passed_over_is_told_with_its_reason(tmp_path, place, caplog):
    files = pictures("a/0.png", "a/1.png", "b/2.PNG", "b/3.png", "a/4.png", "b/5.png")
    other = ("a/notes.txt", "list.csv", "b/without", "b/x.svg", ".DS_Store", "b/y.svg", "b/z.svg", "b/zz.svg")
    source = write(tmp_path / place, files | dict.fromkeys(other, b"?"))
    prepare.prepare(tmp_path / "data", SETTINGS | {"source": str(source)})
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    (line,) = [line for line in told if "passed over" in line]
    start = "" if place == "folder" else f"{place}: "
    assert line.startswith(f"{source}: 8 files passed over (")
    for reason in (
        f"4 of type .svg: {start}b/x.svg, {start}b/y.svg, {start}b/z.svg, …",
        f"1 of type .csv: {start}list.csv",
        f"1 without a type: {start}b/without",
        f"1 of type .txt: {start}a/notes.txt",
        f"1 hidden: {start}.DS_Store",
    ):
        assert reason in line
    read_of = load_tensors(tmp_path / "data")[1]["read"]
    assert read_of["source"] == str(source)
    assert read_of["samples"] == {"train": 4, "test": 2}
    assert read_of["classes"]["names"] == ["a", "b"]
    assert np.add(read_of["classes"]["train"], read_of["classes"]["test"]).tolist() == [3, 3]
    assert read_of["passed_over"]["of type .svg"] == {"count": 4, "first": [f"{start}b/{n}.svg" for n in "xyz"]}


def test_nothing_is_told_where_nothing_is_passed_over(tmp_path, caplog):
    source = write(tmp_path / "mine", pictures(*(f"{name}/{k}.png" for name in "ab" for k in range(8))))
    caplog.set_level(logging.INFO)
    prepare.prepare(tmp_path / "data", SETTINGS | {"source": str(source)})
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", f"{source}: read train 12, test 4") in told
    assert [line for line in told if "class 1: b: " in line[1]]
    assert not [line for line in told if line[0] != "INFO"]


def test_where_nothing_is_left_the_error_says_what_is_there(tmp_path):
    source = write(tmp_path / "mine", {"a/1.svg": b"", "a/2.svg": b"", ".hidden.png": b""})
    pattern = (
        r"holds no images; allowed: bmp, .*; 3 files passed over \(1 hidden: .hidden.png; 2 of type .svg: a/1.svg, a/2"
    )
    refused(pattern, read, source)


def test_every_type_of_image(tmp_path):
    kinds = {"png": "PNG", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF", "TIF": "TIFF"}
    files = {f"{k}.{kind}": encoded(noise(k), name) for k, (kind, name) in enumerate(kinds.items())}
    found, account = read(write(tmp_path / "exact", files), labels=None)
    assert list(found) == [0, 1, 2, 3, 4]
    assert passed(account) == {}
    smooth = np.full((12, 12, 3), 100, np.uint8)
    for kind, name in {
        "jpg": "JPEG",
        "jpeg": "JPEG",
        "jpe": "JPEG",
        "JFIF": "JPEG",
        "gif": "GIF",
        "webp": "WEBP",
    }.items():
        source = write(tmp_path / kind, {f"{k}.{kind}": encoded(smooth, name) for k in range(2)})
        image = datasets.images(str(source), 12, None, None, 0.5, 0)["train"][0]
        assert abs(image.astype(int) - 100).max() <= 2, kind


def test_animations_are_refused_but_not_a_photograph_with_previews(tmp_path):
    frames = [Image.fromarray(noise(k)) for k in range(3)]
    for name, kind in (("a.gif", "GIF"), ("a.tif", "TIFF"), ("a.png", "PNG"), ("a.webp", "WEBP")):
        place = tmp_path / kind
        place.mkdir()
        first, *others = [frame.copy() for frame in frames]
        first.save(place / name, kind, save_all=True, append_images=others)
        refused(rf"{name}: cannot be read \(several frames or pages, allowed: one\)", read, place, labels=None)
    place = tmp_path / "mpo"
    place.mkdir()
    for name in ("a.jpg", "b.jpg"):
        frames[0].save(place / name, "MPO", save_all=True, append_images=frames[1:2])
    assert len(datasets.images(str(place), 12, None, None, 0.5, 0)["train"][0]) == 1


def test_a_tar_of_files_whose_names_have_dots(tmp_path):
    names = [f"{folder}/photo.{k}.png" for folder in "ab" for k in range(3)] + ["b/photo.png"]
    files = pictures(*names)
    expected = {k: int(name[0] == "b") for k, name in enumerate(names)}
    for place in ("folder", "x.zip", "x.tar", "x.tgz"):
        found, account = read(write(tmp_path / place, files))
        assert found == expected, place
        assert passed(account) == {}


def test_samples_of_a_webdataset(tmp_path):
    image, mask = pictures("x", "y").values()

    def found(files, labels="folder"):
        images, account = read(write(tmp_path / "x.tar", files), labels)
        return images, passed(account)

    # The first dot ends the name that members share; the image without more dots is the sample's.
    one = {"a.png": image, "a.seg.png": mask, "a.cls": b"1", "b.input.png": encoded(noise(5)), "b.cls": b"0"}
    assert found(one) == ({0: 1, 5: 0}, {"a further image of a sample": 1})
    # A name with dots that members share whole.
    assert found({"a.0.png": image, "a.0.cls": b"0", "a.1.png": mask, "a.1.cls": b"1"}) == ({0: 0, 1: 1}, {})
    # Members of a sample that do not follow each other.
    assert found({"a.png": image, "b.png": mask, "b.cls": b"0", "a.cls": b"1"}) == ({0: 1, 1: 0}, {})
    # Labels that nobody asks for, and a label without an image.
    assert found({"a.png": image, "a.cls": b"1", "b.png": mask, "b.cls": b"0"}, None)[1] == {"of type .cls": 2}
    whole = {"a.png": image, "a.cls": b"1", "b.png": mask, "b.cls": b"0", "c.cls": b"3"}
    assert found(whole)[1] == {"of type .cls without an image of its name": 1}
    shared = write(tmp_path / "y.tar", {"a.0.png": image, "a.1.png": mask, "a.cls": b"1"})
    refused(r"a\.0\.png: its sample has several images, allowed: one", read, shared)
    twice = write(tmp_path / "z.tar", {"a.png": image, "a.cls": b"1", "a.CLS": b"0"})
    refused(r"a\.CLS: its sample has two members of type .cls", read, twice)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("cat/1 dog/2", "cat dog"),
        ("cat/images/1 dog/images/2", "cat dog"),
        ("cat/one/1 dog/two/2 cow/3", "cat dog cow"),
        ("train/cat/1 train/dog/2 train/cat/3", "cat dog cat"),
        ("set/train/cat/images/1 set/train/dog/images/2", "cat dog"),
        ("train/1 car/2", "train car"),
    ],
)
def test_which_folder_is_the_class(names, expected):
    assert class_names("mine", names.split()) == expected.split()


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ("train/cat/1 test/cat/2", "^mine: test, train are parts of a data set, not classes; allowed: one of them"),
        ("Train/cat/1 val/dog/2", "Train, val are parts"),
        ("cat/old/1 cat/young/2 dog/old/3", "images lie in cat/old and in cat/young, so cat may be the class or"),
        ("cat/1 cat/more/2 dog/3", "images lie in cat and in cat/more"),
        ("train/cat/1 train/dog/1 extra/cat/2", "images lie in train/cat and in train/dog"),
    ],
)
def test_folders_that_can_be_read_as_classes_in_two_ways_are_refused(names, pattern):
    with pytest.raises(MismatchError, match=pattern):
        class_names("mine", names.split())


def test_doubles(tmp_path):
    place = write(tmp_path / "mine", pictures("a/0.png", "a/1.png", "b/2.png") | {"b/3.bmp": encoded(noise(0), "BMP")})
    assert remarks(read(place)[1]) == {"images that are there twice": ["b/3.bmp is a/0.png"]}
    image = encoded(noise(0))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            archive.writestr("a/0.png", image)
    write(tmp_path / "x.tar", {"a/0.png": image, "./a/0.png": image})
    for name in ("x.zip", "x.tar"):
        refused(rf"{name}: a/0.png: is in the archive twice, allowed: once", read, tmp_path / name)


def test_classes_whose_names_look_the_same_are_told(tmp_path):
    place = write(tmp_path / "mine", pictures("Cat/0.png", "cat/1.png", "caf\u00e9/2.png", "cafe\u0301/3.png"))
    found, account = read(place)
    assert len(set(found.values())) == 4
    (pairs,) = remarks(account).values()
    assert sorted(pairs) == ["Cat and cat", "cafe\u0301 and caf\u00e9"]


def test_gaps_in_labels_are_closed_and_noise_asks_for_classes_that_have_data(tmp_path):
    names = [f"{k:02}" for k in range(12)]
    files = {f"{name}.png": image for name, image in zip(names, pictures(*names).values())}
    files |= {f"{name}.cls": str((0, 5, 9)[k % 3]).encode() for k, name in enumerate(names)}
    source = write(tmp_path / "x.tar", files)
    found, account = read(source)
    assert found == {k: k % 3 for k in range(12)}
    what = "classes without images in between, so numbered anew"
    assert remarks(account) == {what: [".cls 5 is 1", ".cls 9 is 2"]}
    prepare.prepare(tmp_path / "data", SETTINGS | {"source": str(source)})
    tensors, classes = prepare.load(tmp_path / "data", "np")
    asked = draw_noise(30, (3, 12, 12), classes, 2)["labels"]
    assert set(asked) == set(tensors["train_labels"]) == {0, 1, 2}
    assert load_tensors(tmp_path / "data")[1]["read"]["classes"]["names"] == ["0", "5", "9"]


@pytest.mark.parametrize(
    ("names", "changes", "pattern"),
    [
        ([f"flower/{k}.png" for k in range(20)], {}, "data.labels: folder finds one class, 'flower'; classifier and"),
        (
            ["a/0.png", "a/1.png", "b/2.png", "b/3.png"],
            {"test_share": 0.3},
            "too few images to train on, 3: .* at least 4",
        ),
        ([f"a/{k}.png" for k in range(9)] + ["b/9.png"], {}, "class 'b' has no image to train on, and 1 held out"),
    ],
)
def test_data_that_cannot_carry_an_experiment(tmp_path, names, changes, pattern):
    settings = SETTINGS | changes | {"source": str(write(tmp_path / "mine", pictures(*names)))}
    if "class 'b'" in pattern:  # the split holds it out under some seed
        settings |= {"seed": next(s for s in range(99) if 9 in held_out(s, 10, 0.25))}
    with pytest.raises(MismatchError, match=pattern) as caught:
        prepare.prepare(tmp_path / "data", settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def held_out(seed, count, share):
    """Numbers of the images that the reader holds out."""
    from consistency.flow.streams import generator

    return generator(seed, "split").permutation(count)[: round(share * count)].tolist()


def test_images_that_are_all_the_same_and_shares_that_leave_nothing(tmp_path, caplog):
    image = encoded(noise(0))
    source = write(tmp_path / "mine", {f"{folder}/{k}.png": image for folder in "ab" for k in range(8)})
    prepare.prepare(tmp_path / "data", SETTINGS | {"source": str(source)})
    assert "all 12 images to train on are the same" in caplog.text
    for share, pattern in (
        (0.0001, "no image to test on; allowed: a larger"),
        (0.9999, "too few images to train on, 0"),
    ):
        with pytest.raises(MismatchError, match=pattern):
            prepare.prepare(tmp_path / "data", {"kind": "digits", "test_share": share, "seed": 0})


def test_classes_without_an_image_to_test_on_and_small_images_are_told(tmp_path, caplog):
    source = write(tmp_path / "mine", pictures(*(f"{folder}/{k}.png" for folder in "abcdefgh" for k in range(2))))
    seed = next(s for s in range(99) if len({k // 2 for k in held_out(s, 16, 0.25)}) == 4)
    prepare.prepare(tmp_path / "data", SETTINGS | {"source": str(source), "seed": seed, "side": 16})
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "mine: classes without an image to test on: 4 (" in told
    assert "mine: images enlarged to 16×16 pixels: 16 (a/0.png, a/1.png, b/0.png, …)" in told


def captions_of(place, files):
    """The captions, and the account."""
    account = Account("mine")
    return [caption for _, _, caption in datasets.captioned(str(write(place, files)), 12, account)], account


def test_encodings_of_captions(tmp_path):
    image = encoded(noise(0))
    text = 'file_name,text\n0.png,"Bäume, 木"\n'
    lines = '{"file_name": "0.png", "text": "Bäume, 木"}\n'
    for number, (name, content, encoding) in enumerate(
        (name, content, encoding)
        for name, content in (("metadata.csv", text), ("metadata.jsonl", lines))
        for encoding in ("utf-8", "utf-8-sig", "utf-16")
    ):
        files = {"0.png": image, name: content.replace("\n", "\r\n\r\n").encode(encoding)}
        assert captions_of(tmp_path / str(number), files)[0] == ["Bäume, 木"], (name, encoding)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        beside = {"0.png": image, "0.txt": "Bäume".encode(encoding)}
        assert captions_of(tmp_path / f"{encoding}.tar", beside)[0] == ["Bäume"]
        entry = {"0.png": image, "0.json": '{"caption": "Bäume"}'.encode(encoding)}
        assert captions_of(tmp_path / f"{encoding}.tgz", entry)[0] == ["Bäume"]
    for number, (name, content, encoding) in enumerate(
        (("metadata.csv", text.replace("木", ""), "latin-1"), ("metadata.jsonl", lines, "utf-16-le"))
    ):
        refused(
            rf"{name}: cannot be read \(.*UTF-8",
            captions_of,
            tmp_path / f"r{number}",
            {"0.png": image, name: content.encode(encoding)},
        )
    refused(
        "0.png: cannot be read .*save it as UTF-8",
        captions_of,
        tmp_path / "r.tar",
        {"0.png": image, "0.txt": b"B\xe4ume"},
    )
    refused(
        "0.png: cannot be read .*zero bytes",
        captions_of,
        tmp_path / "r.tar",
        {"0.png": image, "0.txt": b"B\0\xc3\xa4\0"},
    )


@pytest.mark.parametrize(
    ("table", "pattern"),
    [
        (
            "file_name,text\n0.png,a red boat, on still water, at dawn\n",
            "row 1: 4 fields, the header has 2; put a caption",
        ),
        ("file_name,text,score\n0.png,a boat\n", "row 1: 2 fields, the header has 3"),
        ("file_name,text\n\n0.png,a\n1.png\n", "row 2: 1 fields"),
        ("file_name;text\n0.png;a boat\n", "row 1 without file_name and text"),
        ("file_name,text,text\n0.png,a,b\n", "a column stands twice in file_name, text, text"),
        ("file_name,text\n0.png,a\n0.png,b\n", "0.png has two captions"),
        ("file_name,text\n0.PNG,a\n", "0.PNG: named in the metadata, but not there"),
    ],
)
def test_tables_of_captions_that_are_not_certain_are_refused(tmp_path, table, pattern):
    refused(pattern, captions_of, tmp_path / "set", pictures("0.png", "1.png") | {"metadata.csv": table.encode()})


def test_what_captions_pass_over_is_told(tmp_path):
    files = pictures("0.png", "1.png", "2.png") | {
        "read.me": b"",
        "metadata.csv": b"file_name,text,score\n0.png,a,1\n1.png, ,2\n",
    }
    for place in ("folder", "x.zip", "x.tar"):
        found, account = captions_of(tmp_path / place, files)
        assert found == ["a", " "]
        assert passed(account) == {"not named in the metadata": 1, "of type .me": 1}
        assert {what: len(names) for what, names in remarks(account).items()} == {
            "columns that are not used": 1,
            "empty captions": 1,
        }
    beside = {"0.png": files["0.png"], "0.txt": b"zero", "alone.txt": b"", "x.md": b""}
    account = captions_of(tmp_path / "y.tar", beside)[1]
    assert passed(account) == {"of type .txt without an image of its name": 1, "of type .md": 1}


def test_captioned_images_as_data(tmp_path, caplog):
    names = [f"{k}.png" for k in range(5)]
    table = "file_name,text\n" + "".join(f"{name},caption {name}\n" for name in names[:4])
    source = write(tmp_path / "set", pictures(*names) | {"metadata.csv": table.encode()})
    settings = {"name": "mine", "source": str(source), "side": 12, "download": None}
    latents.prepare(tmp_path / "images", tmp_path / "captions", settings)
    read_of = load_tensors(tmp_path / "images")[1]["read"]
    assert read_of == read_json(tmp_path / "captions")["read"]
    assert read_of["samples"] == {"train": 4}
    assert read_of["passed_over"] == {"not named in the metadata": {"count": 1, "first": ["4.png"]}}
    assert "set: 1 file passed over (1 not named in the metadata: 4.png)" in caplog.text
    (source / "metadata.csv").write_text("".join(table.splitlines(keepends=True)[:4]))
    with pytest.raises(MismatchError, match="too few images to train on, 3"):
        latents.prepare(tmp_path / "fewer", tmp_path / "captions", settings)


def test_links_in_archives_and_names_that_lead_out_are_told(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, image in pictures("a/0.png", "b/1.png").items():
            add(tar, name, image)
        add(tar, "a/soft.png", type=tarfile.SYMTYPE, linkname="0.png")
        add(tar, "../up.png", b"")
        add(tar, "a/pipe", type=tarfile.FIFOTYPE)
    assert passed(read(tmp_path / "x.tar")[1]) == {
        "a link in an archive": 1,
        "a name that leads out of the archive": 1,
        "not a file": 1,
    }


def test_the_account_reaches_the_metrics_protocol(tmp_path):
    """And digits and mixtures, which read no files of the user, have none."""
    from consistency.evaluate import features

    source = write(
        tmp_path / "mine", pictures(*(f"{name}/{k}.png" for name in "ab" for k in range(8))) | {"a/x.txt": b""}
    )
    prepare.prepare(tmp_path / "data", SETTINGS | {"source": str(source)})
    cards = features.extract(tmp_path / "features", tmp_path / "data", ["train_images"], 16, [])
    run = {"run": "data", "method": "data"}
    measure_data(tmp_path / "data.json", run, tmp_path / "features", cards, 3, {}, data=tmp_path / "data")
    protocol = read_json(tmp_path / "data.json")["protocol"]
    assert protocol["data_read"] == load_tensors(tmp_path / "data")[1]["read"]
    assert protocol["data_read"]["passed_over"] == {"of type .txt": {"count": 1, "first": ["a/x.txt"]}}
    with pytest.raises(
        MismatchError, match="evaluation.neighbours: 12, but train_images of coordinates has 12 samples"
    ):
        measure_data(tmp_path / "more.json", run, tmp_path / "features", cards, 12, {})
    prepare.prepare(tmp_path / "digits", {"kind": "digits", "test_share": 0.2, "seed": 0})
    assert load_tensors(tmp_path / "digits")[1] == {"name": "digits", "classes": 10}


def test_names_that_hold_anything_stay_one_line(tmp_path, caplog):
    odd = os.fsdecode(b"a/new\nline \xff.txt")
    names = ["a/0.png", "a/1.png", "a/2.png", "a/3.png", "a/4.png", "a b\n/5.png", os.fsdecode(b"a\xff/6.png")]
    (tmp_path / "mine/a").mkdir(parents=True)
    (tmp_path / "mine" / odd).write_bytes(b"")
    source = write(tmp_path / "mine", pictures(*names))
    seed = next(s for s in range(99) if not {5, 6} & set(held_out(s, 7, 0.25)))
    prepare.prepare(tmp_path / "data", SETTINGS | {"source": str(source), "seed": seed})
    assert not [record for record in caplog.records if "\n" in record.getMessage()]
    again = json.loads(json.dumps(load_tensors(tmp_path / "data")[1]["read"]))
    assert set(again["classes"]["names"]) == {"a", "a b\n", os.fsdecode(b"a\xff")}
    prepare.prepare(tmp_path / "same", SETTINGS | {"source": str(source), "seed": seed})
    assert (tmp_path / "same").read_bytes() == (tmp_path / "data").read_bytes()
