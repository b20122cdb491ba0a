"""Features and the Fréchet distance against other implementations of the field, on the same numbers."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from consistency.evaluate.distances import FeatureSet, frechet_distance
from timing import Row, Spread, paired, ratio, row


def frechet(count: int, width: int, rounds: int) -> Iterator[Row]:
    """The Fréchet distance of two sets of features: ours, clean-fid's, torch-fidelity's; values must agree."""
    from cleanfid.fid import frechet_distance as clean_fid

    try:
        from torch_fidelity.metric_fid import fid_statistics_to_metric as fidelity
    except ImportError:
        fidelity = None
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((width, width)) / width**0.5
    sets = [rng.standard_normal((count, width)) @ mix + shift for shift in (0.0, 0.1)]
    values: dict[str, float] = {}

    def ours() -> None:
        values["ours"] = frechet_distance(*(FeatureSet(features) for features in sets))

    def theirs() -> None:
        pair = [(features.mean(0), np.cov(features, rowvar=False)) for features in sets]
        values["clean-fid"] = float(clean_fid(*pair[0], *pair[1]))

    def torch_fidelity() -> None:
        pair = [{"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)} for features in sets]
        with contextlib.redirect_stderr(io.StringIO()):
            metrics = fidelity(*pair, verbose=False)
        values["torch-fidelity"] = float(next(iter(metrics.values())))

    functions = {"ours": ours, "clean-fid": theirs} | ({"torch-fidelity": torch_fidelity} if fidelity else {})
    durations = paired(functions, rounds, warm=0)
    setting = f"{count:,} features of {width}, covariances included"
    for name, seconds in durations.items():
        yield row("Fréchet distance", name, setting, "time", "s", Spread.of(seconds))
        if name != "ours":
            yield row("Fréchet distance", name, setting, "time / ours", "×", ratio(seconds, durations["ours"]))
            apart = abs(values[name] - values["ours"]) / values["ours"]
            yield row("Fréchet distance", name, setting, "relative difference of the value from ours", "", apart)


def features(count: int, rounds: int) -> Iterator[Row]:
    """Images a second through Inception-v3 (of full size, random weights): ours, clean-fid's own from PNG files, and
    the network alone; features must agree."""
    from consistency.runtime.compat import ensure_torchvision

    ensure_torchvision()
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W
    from consistency.evaluate import extractors
    from consistency.files.storage import sha256
    from PIL import Image

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = inception(Path(folder) / "weights")
        extractors.INCEPTION_SHA256 = sha256(weights / "inception-2015-12-05.pt")  # of this stand-in
        extractor = extractors.load("inception-v3", weights).to(device)
        network = InceptionV3W(str(weights), download=False).to(device).eval()
        pngs = Path(folder) / "images"
        pngs.mkdir()
        options = {"mode": "clean", "num_workers": 0, "batch_size": count, "device": device, "verbose": False}

        def ours() -> None:
            kept["ours"] = extractor(images).numpy()

        def clean_fid() -> None:
            for number, image in enumerate(images):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(pngs / f"{number:04d}.png")
            kept["clean-fid"] = fid.get_folder_features(str(pngs), network, **options)

        @torch.no_grad()
        def forward() -> None:
            network(torch.zeros(count, 3, 299, 299, device=device))

        durations = paired({"ours": ours, "clean-fid": clean_fid, "network alone": forward}, rounds)
    setting = f"Inception-v3, {count} images of 3×32×32"
    for name, seconds in durations.items():
        yield row("Features", name, setting, "images", "1/s", Spread.of([count / s for s in seconds]))
    share = ratio(durations["network alone"], durations["ours"])
    yield row(
        "Features", "ours", setting, "share of the network's own rate", "", share, note="resizing to 299 included"
    )
    apart = float(np.abs(kept["ours"] - kept["clean-fid"]).max() / np.abs(kept["clean-fid"]).max())
    yield row("Features", "clean-fid", setting, "largest difference from ours, of the largest value", "", apart)


def inception(folder: Path) -> Path:
    """A file as clean-fid's, with torchvision's Inception-v3 of random weights in it."""
    from torchvision.models import inception_v3

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            network = inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
            network.fc, network.dropout = torch.nn.Identity(), torch.nn.Identity()
            self.network = torch.jit.trace(network, torch.zeros(2, 3, 299, 299))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = Layers()

        def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return self.layers((img - 128) / 128)

    folder.mkdir()
    torch.manual_seed(0)
    torch.jit.script(Whole()).save(folder / "inception-2015-12-05.pt")
    return folder
