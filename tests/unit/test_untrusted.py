"""Nothing from outside is unpickled, and nothing in results/ is read but through the readers that check hashes."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import bombs
import pytest
import torch
from consistency import networks
from consistency.errors import ConsistencyError, StorageError
from consistency.evaluate import extractors
from consistency.files import storage
from consistency.networks import latents
from consistency.training import checkpoints
from helpers import ROOT

FILES = sorted((ROOT / "workflow").rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def calls(path):
    """(line, dotted name, keyword arguments) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_there_is_something_to_check():
    assert len(FILES) > 90
    assert any(name == "torch.load" for path in FILES for _, name, _ in calls(path))
    assert any(name == "np.load" for path in FILES for _, name, _ in calls(path))
    assert any(name.endswith(".from_pretrained") for path in FILES for _, name, _ in calls(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "workflow")))
def test_nothing_is_unpickled(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not MODULES & {name.split(".")[0] for name in names}
    for line, name, options in calls(path):
        where = f"{path}:{line}"
        if name == "torch.load":
            assert options.get("weights_only") == "True", where
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle") == "False", where
        assert name not in ("pd.read_pickle", "torch.jit.load", "torch.hub.load", "np.fromregex", "eval"), where
        assert name != "exec" or path.name == "plugins.py", where
        assert "trust_remote_code" not in options, where


# Where weights are read with a library's own loader: what of ours allows no .bin, and what takes teachers of the time
# before safetensors (whose .bin diffusers reads with weights_only, see test_networks).
LOADERS = {
    "networks/latents.py": 3,  # text encoders and tokenizers, the pipeline around them, the VAE
    "evaluate/extractors.py": 2,  # a model; a tokenizer
    "networks/classifier.py": 1,
    "networks/__init__.py": 1,
    "networks/sdxl.py": 1,
    "networks/unet.py": 1,
    "students/maps.py": 1,
}
OF_ANY_AGE = {"networks/__init__.py", "networks/unet.py", "networks/sdxl.py"}


def test_code_is_run_from_the_users_own_files_alone():
    """One `exec`, of a file that `plugins` of config.yaml lists."""
    paths = [path for path in FILES for _, name, _ in calls(path) if name == "exec"]
    assert paths == [ROOT / "workflow/consistency/plugins.py"]


def test_weights_are_safetensors():
    found = {}
    for path in FILES:
        for line, name, options in calls(path):
            if name.endswith(".from_pretrained") and "config_class" not in name:
                file = str(path.relative_to(ROOT / "workflow" / "consistency"))
                found[file] = found.get(file, 0) + 1
                safe = options.get("use_safetensors") == "True"
                tokens = "tokenizer" in name
                hub_mixin = name in ("Classifier.from_pretrained", "PeftModel.from_pretrained")
                assert safe or tokens or hub_mixin or file in OF_ANY_AGE, f"{path}:{line}"
    assert found == LOADERS


def test_our_own_readers_of_our_own_files():
    """`open`, `read_text`, pandas' and safetensors' readers stand in few modules; all others read through `storage`."""
    own = {"storage.py", "hashes.py", "resolve.py", "datasets.py", "downloads.py", "hub.py"}
    own |= {"estimates.py", "names.py", "provenance.py", "registry.py", "shell.py"}  # of files of this repository
    own |= {"plugins.py"}  # of users' code
    own |= {"strict.py"}  # of YAML, which people write
    own |= {"archives.py", "captions.py", "images.py"}  # of users' data
    own |= {"locks.py", "parallel.py", "status.py"}  # of what running processes say of themselves
    own |= {"writers.py"}  # of the file that it writes
    own |= {"filesystems.py"}  # for `storage`, where files cannot be mapped
    own |= {"bounds.py", "sizes.py"}  # of anybody's files, up to a size
    own |= {"records.py"}  # of JSON that it has just made
    readers = ("open", "pd.read_csv", "pd.read_json", "json.load", "json.loads", "safe_open", "load_file", "np.load")
    methods = (".read_text", ".read_bytes", ".open")
    for path in FILES:
        if path.name in own or path.parent.name == "scripts":
            continue
        for line, name, _ in calls(path):
            allowed = path.name == "loop.py" and name == "open"  # the growing stats file, written only
            assert allowed or (name not in readers and not name.endswith(methods)), f"{path}:{line}: {name}"


class Attack:
    """Unpickled without care, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_runs_code_is_not_resumed(tmp_path, caplog):
    content = pickle.dumps({"fingerprint": "{}", "x": Attack(tmp_path / "ran")})
    storage.write_sealed(tmp_path / "checkpoint.pt", content)  # its hash is right
    assert checkpoints.read_checkpoint(tmp_path / "checkpoint.pt", {}) is None
    torch.save({"fingerprint": "{}", "x": Attack(tmp_path / "ran")}, tmp_path / "saved")
    storage.write_sealed(tmp_path / "checkpoint.pt", (tmp_path / "saved").read_bytes())
    assert checkpoints.read_checkpoint(tmp_path / "checkpoint.pt", {}) is None
    assert caplog.text.count("starts from the beginning") == 2
    assert not (tmp_path / "ran").exists()


def test_our_own_networks_are_never_read_from_bin(tmp_path):
    networks.save(networks.build({"kind": "mlp", "width": 8, "depth": 1}, (1, 8, 8), 2, 1000, 0), tmp_path / "n")
    (tmp_path / "n" / "model.safetensors").unlink()
    torch.save({"x": Attack(tmp_path / "ran")}, tmp_path / "n" / "pytorch_model.bin")
    (tmp_path / "n" / "SHA256SUMS").unlink()
    with pytest.raises(StorageError):
        networks.load(tmp_path / "n")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline's folder that holds a module of its own wherever diffusers and transformers look for one."""
    import tiny

    folder = tiny.sdxl(tmp_path_factory.mktemp("foreign") / "sdxl")
    tiny.clip_folder(folder / "clip")
    return folder


@pytest.fixture
def foreign(pipeline, tmp_path):
    """A copy of it, whose modules leave a file `ran` when they are imported."""
    folder = shutil.copytree(pipeline, tmp_path / "foreign")
    code = f"""
from pathlib import Path
Path({str(tmp_path / "ran")!r}).touch()
from diffusers import StableDiffusionXLPipeline as Pipeline, UNet2DConditionModel as Model
from transformers import CLIPTokenizer as Tokenizer, CLIPConfig as Config
"""
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for name in ("foreign", "pipeline", "modeling_foreign", "unet", "tokenizer", "__init__"):
            (place / f"{name}.py").write_text(code)
    return folder


def encode(folder):
    storage.write_json(folder.parent / "captions.json", {"captions": ["a cat"]})
    latents.encode_prompts(folder.parent / "out", folder.parent / "captions.json", folder, 32, 1, "no")


AUTO = {"auto_map": {"AutoModel": "foreign.Model", "AutoConfig": "foreign.Config", "AutoTokenizer": "foreign.Tokenizer"},
        "trust_remote_code": True, "custom_pipeline": "foreign"}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("model_index.json", {"_class_name": ["foreign", "Pipeline"]}),
        ("model_index.json", {"tokenizer": ["foreign", "Tokenizer"]}),
        ("model_index.json", {"tokenizer": ["os", "system"]}),
        ("model_index.json", {"scheduler": ["builtins", "exec"]}),
        ("model_index.json", {"scheduler": ["foreign", "Model"], "trust_remote_code": True}),
        ("model_index.json", {"tokenizer_2": ["modeling_foreign", "Tokenizer"], "custom_pipeline": "foreign"}),
    ],
)
def test_a_pipeline_of_foreign_classes_is_refused(foreign, tmp_path, file, changes):
    bombs.changed(foreign / file, **changes)
    with pytest.raises(StorageError, match="text encoders cannot be loaded") as caught:
        encode(foreign)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["model_index.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"])
def test_names_of_a_pipelines_own_code_are_not_followed(foreign, tmp_path, file):
    bombs.changed(foreign / file, **AUTO | ({"_class_name": "foreign"} if file == "model_index.json" else {}))
    encode(foreign)
    assert not (tmp_path / "ran").exists()


def test_networks_and_extractors_never_run_a_folders_code(foreign, tmp_path):
    """A class that is not ours is refused by name; what else a configuration says of code is not looked at."""
    config = foreign / "unet" / "config.json"
    for name in ("foreign.Model", ["foreign", "Model"], "Model"):
        bombs.changed(config, _class_name=name, **AUTO)
        with pytest.raises(ConsistencyError, match="a teacher is a UNet2DModel") as caught:
            networks.load(foreign / "unet")
        assert "\n" not in str(caught.value)
    bombs.changed(config, _class_name="UNet2DConditionModel")
    networks.load(foreign / "unet")
    bombs.changed(foreign / "clip" / "config.json", architectures=["foreign.Model"], **AUTO)
    (foreign / "clip" / "tokenizer_config.json").write_text(json.dumps(AUTO | {"tokenizer_class": "foreign.Tokenizer"}))
    extractors.load("clip", foreign / "clip")
    bombs.changed(foreign / "clip" / "config.json", model_type="foreign")
    with pytest.raises(ConsistencyError, match="holds a model of type 'foreign', not 'clip'"):
        extractors.load("clip", foreign / "clip")
    assert not (tmp_path / "ran").exists()


def test_the_foreign_code_would_run(foreign, tmp_path):
    """Where somebody trusts it: without this the tests above could not fail."""
    from diffusers import DiffusionPipeline

    bombs.changed(foreign / "model_index.json", _class_name=["foreign", "Pipeline"])
    DiffusionPipeline.from_pretrained(foreign, trust_remote_code=True, local_files_only=True)
    assert (tmp_path / "ran").exists()
