"""What is said before any job of files that are not here: each one's name, address, hash and place, and no more."""

import socket
from pathlib import Path

import pytest
from consistency import config
from consistency.data import datasets
from consistency.data.fetch import downloads, network
from consistency.errors import StorageError
from consistency.plan import preflight

PRESETS = sorted(path.stem for path in config.PRESETS.glob("*.yaml") if "suite:" not in path.read_text())
COMMIT = "267b167dc01f0e4e61923ea244e8b988f84deb80"
TEACHER = "1558dbe3fb093b0857d473e376b711eeda1b186c557be5e85b3a56300cd49f0f"
INCEPTION = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, and an empty cache."""
    from huggingface_hub import _tree_cache, constants

    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONSISTENCY_OFFLINE", "1")
    monkeypatch.setenv("CONSISTENCY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, getattr(constants, name))  # restored after the test
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(_tree_cache, "_IN_MEMORY_TREE_CACHE", {})
    monkeypatch.setattr(datasets, "FASHION_DEBIAN", tmp_path / "no-package")
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def connect(*args, **options):
    raise AssertionError("the network was asked")


def problems(name, overrides=None, results="results"):
    return preflight.problems(config.load_experiment(name, overrides), Path(results))


def hub_cached(folder, repo, revision, names):
    """Files of a repository as the hub's client keeps them."""
    snapshot = folder / "hf" / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / revision
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(b"{}")


def file_cached(folder, name):
    (folder / "cache" / "files").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "files" / name).write_bytes(b"x")


def holds(line, *words):
    assert "\n" not in line
    for word in words:
        assert str(word) in line, (word, line)


def test_every_missing_file_of_cifar10(offline):
    """A repository, a file of an extractor, an archive of data: one line each."""
    lines = problems("cifar10")
    assert [line.split(":")[0] for line in lines] == ["teacher", "inception-v3", "data"]
    assert all("not in the cache and offline is set" in line for line in lines)
    teacher, inception, archive = lines
    holds(teacher, "google/ddpm-cifar10-32", f"https://huggingface.co/google/ddpm-cifar10-32/tree/{COMMIT}")
    holds(teacher, f"hf download google/ddpm-cifar10-32 --revision {COMMIT}", offline / "hf")
    holds(teacher, f"sha256 of diffusion_pytorch_model.safetensors {TEACHER}")
    holds(inception, INCEPTION_URL, INCEPTION, offline / "cache" / "files" / "inception-2015-12-05.pt")
    holds(archive, datasets.CIFAR10_URL, datasets.CIFAR10_SHA256)
    holds(archive, offline / "cache" / "files" / "cifar-10-binary.tar.gz")
    assert not list(offline.iterdir())  # nothing was written


def test_every_missing_file_of_sdxl(offline):
    lines = {line.split(":")[0]: line for line in problems("sdxl")}
    assert set(lines) == {"teacher", "vae", "inception-v3", "dinov2", "clip", "aesthetic", "data"}
    experiment = config.load_experiment("sdxl")
    for part, source in preflight.weights(experiment).items():
        for pinned in source.sha256.values() if isinstance(source.sha256, dict) else [source.sha256]:
            holds(lines[part], pinned)
        holds(lines[part], getattr(source, "repo", None) or source.url)
    archive = experiment.data.download
    holds(lines["data"], archive.url, offline / "cache" / "files" / archive.name)
    holds(lines["aesthetic"], offline / "cache" / "files" / "sac+logos+ava1-l14-linearMSE.pth")


def test_what_is_cached_is_not_missing(offline):
    hub_cached(offline, "google/ddpm-cifar10-32", COMMIT, ["config.json", "diffusion_pytorch_model.safetensors"])
    file_cached(offline, "inception-2015-12-05.pt")
    assert [line.split(":")[0] for line in problems("cifar10")] == ["data"]
    file_cached(offline, "cifar-10-binary.tar.gz")
    assert problems("cifar10") == []


@pytest.mark.parametrize("names", [["config.json"], ["config.json", "diffusion_pytorch_model.bin"]])
def test_a_repository_that_is_there_in_part(offline, names):
    hub_cached(offline, "google/ddpm-cifar10-32", COMMIT, names)
    assert problems("cifar10")[0].startswith("teacher: not in the cache")


def test_another_commit_is_another_repository(offline):
    names = ["config.json", "diffusion_pytorch_model.safetensors"]
    hub_cached(offline, "google/ddpm-cifar10-32", "0" * 40, names)
    assert problems("cifar10")[0].startswith("teacher: not in the cache")


@pytest.mark.parametrize("product", ["data.safetensors", "images.safetensors"])
def test_what_was_made_needs_no_download(offline, product):
    """Finished downloads and data in the results, as another machine may have brought them."""
    results = offline / "results"
    (results / "downloads" / "teacher").mkdir(parents=True)
    assert [line.split(":")[0] for line in problems("cifar10", results=results)] == ["inception-v3", "data"]
    (results / "downloads" / "inception-v3").mkdir()
    assert [line.split(":")[0] for line in problems("cifar10", results=results)] == ["data"]
    (results / product).touch()
    assert problems("cifar10", results=results) == []


def test_each_part_of_captions_is_looked_for_by_its_own_name(offline):
    results = offline / "results"
    (results / "images.safetensors").parent.mkdir()
    (results / "images.safetensors").touch()
    for part in ("teacher", "vae", "dinov2", "clip", "aesthetic"):
        (results / "downloads" / part).mkdir(parents=True)
    assert [line.split(":")[0] for line in problems("sdxl", results=results)] == ["inception-v3"]


def test_the_files_named_for_fashion_are_those_that_its_reader_fetches(offline, monkeypatch):
    """The names, addresses and hashes are the reader's own."""
    lines, fetched = problems("fashion"), []
    assert len(lines) == 4

    def fetch(url, name, sha256):
        fetched.append(name)
        holds(next(line for line in lines if url in line), "data: ", sha256, offline / "cache" / "files" / name)
        path = offline / name
        path.write_bytes(b"no gzip")
        return path

    monkeypatch.setattr(downloads, "fetch", fetch)
    for _ in range(4):
        with pytest.raises(StorageError):
            datasets.fashion()
        file_cached(offline, fetched[-1])
        monkeypatch.setattr(datasets, "FASHION_SHA256", dict(list(datasets.FASHION_SHA256.items())[1:]))
    assert len(set(fetched)) == 4
    assert problems("fashion") == []


def test_fashion_of_debians_package_or_a_folder_needs_nothing(offline, monkeypatch):
    (offline / "mine").mkdir()
    assert problems("fashion", {"data": {"folder": str(offline / "mine")}}) == []
    (offline / "package").mkdir()
    monkeypatch.setattr(datasets, "FASHION_DEBIAN", offline / "package")
    assert problems("fashion") == []


def test_the_file_named_for_cifar10_is_the_one_that_its_reader_fetches(offline, monkeypatch):
    asked = []

    def fetch(*args):
        asked.append(args)
        raise StorageError("stop")

    monkeypatch.setattr(downloads, "fetch", fetch)
    with pytest.raises(StorageError, match="stop"):
        datasets.cifar10()
    (url, name, sha256) = asked[0]
    holds(problems("cifar10")[-1], url, sha256, offline / "cache" / "files" / name)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("imagenet32", {}, ["data: data/imagenet32 does not exist", datasets.IMAGENET_URL, "data's folder"]),
        ("celeba64", {}, ["data: data/celeba/img_align_celeba.zip does not exist", "place the files there"]),
        ("lsun-church64", {}, ["data: data/lsun-church does not exist"]),
        ("cifar10", {"data": {"folder": "here"}}, ["data: here does not exist"]),
        ("fashion", {"data": {"folder": "/nowhere/at/all"}}, ["data: /nowhere/at/all does not exist"]),
        ("sdxl", {"data": {"source": "captions.tar"}}, ["data: captions.tar does not exist"]),
    ],
)
def test_a_local_place_that_does_not_exist(name, overrides, words):
    lines = [line for line in problems(name, overrides) if line.startswith("data:")]
    assert len(lines) == 1
    holds(lines[0], *words)


def test_local_places_that_exist(offline):
    (offline / "data" / "celeba").mkdir(parents=True)
    (offline / "data" / "celeba" / "img_align_celeba.zip").touch()
    file_cached(offline, "inception-2015-12-05.pt")
    assert problems("celeba64") == []
    (offline / "data" / "imagenet32").mkdir()
    assert problems("imagenet32") == []


def test_a_pattern_that_matches_nothing(offline):
    overrides = {"data": {"source": "shards/*.tar"}}
    lines = [line for line in problems("celeba64", overrides) if line.startswith("data:")]
    assert len(lines) == 1
    holds(lines[0], "shards/*.tar")
    (offline / "shards").mkdir()
    (offline / "shards" / "0.tar").touch()
    assert not [line for line in problems("celeba64", overrides) if line.startswith("data:")]


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith(("digits", "gaussians"))])
def test_what_comes_with_the_packages_needs_nothing(name):
    assert problems(name) == []


def test_the_place_of_the_hubs_files_is_the_clients(offline, monkeypatch):
    """Without HF_HOME it follows XDG_CACHE_HOME, as huggingface_hub does."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(offline / "xdg"))
    monkeypatch.setattr(constants, "HF_HOME", str(offline / "xdg" / "huggingface"))  # as it finds when it is imported
    holds(problems("cifar10")[0], offline / "xdg" / "huggingface")


def test_with_network_only_the_host_is_asked(offline, monkeypatch):
    """Online, a file counts as missing when its host does not answer."""
    monkeypatch.setenv("CONSISTENCY_OFFLINE", "0")
    asked = []

    def unreachable(url, certificates):
        asked.append(url)
        return "" if "huggingface" in url else "no network"

    monkeypatch.setattr(network, "unreachable", unreachable)
    lines = problems("cifar10")
    assert [line.split(":")[0] for line in lines] == ["inception-v3", "data"]
    assert all("not in the cache and no network" in line for line in lines)
    assert asked == [
        f"https://huggingface.co/google/ddpm-cifar10-32/tree/{COMMIT}",
        INCEPTION_URL,
        datasets.CIFAR10_URL,
    ]


def test_logins_in_addresses_are_not_shown(monkeypatch):
    url = {"url": "https://example.org/x.pt?token=abc123", "name": "x.pt"}
    (line,) = problems("digits", {"extractors": [{"kind": "inception-v3", "weights": url}]})
    assert "abc123" not in line
    holds(line, "https://example.org/x.pt", "x.pt")
