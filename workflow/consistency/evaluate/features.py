"""Features of sample sets and their statistics: of trained or pretrained networks, or the samples themselves.

Where the data are points, not images, the samples' own coordinates are the features; the extractor
is then called `coordinates`. Latents are decoded once for all extractors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import memory_advice
from ..files import bounds
from ..files.storage import load_tensors, read_json, save_tensors, sha256

if TYPE_CHECKING:
    import torch

Card = dict[str, Any]
COORDINATES = "coordinates"
PICTURES, PICTURE_SIDE = 15, 128  # decoded images that are kept for figures, and their largest side


@memory_advice("lower evaluation.batch_size")
def extract(
    path: str | Path,
    source: str | Path,
    sets: list[str],
    batch_size: int,
    extractors: list[dict[str, Any]],
    *,
    vae: dict[str, Any] | None = None,
    captions: str | Path | None = None,
    labels: str | Path | None = None,
    cache: bool = False,
) -> list[Card]:
    """Write what the extractors find in sets of a safetensors file.

    For each extractor and set: `{extractor}/{set}.features` (n, d) with the statistics `.mean` float64 (d,) and
    `.covariance` float64 (d, d); of a classifier also `.predicted` int64 (n,); of CLIP instead `.clip_score` (n,),
    and `.aesthetic_score` (n,).

    Args:
        sets: tensor names in `source`, or prefixes ending in `_` that stand for all names with it.
        extractors: of `sources.Extractor`, each with the `folder` of its weights; none for coordinates (NumPy alone,
            no torch), with which a mixture's parameters are copied too.
        vae: of samples that are latents: `folder`, `batch_size`, `precision` (see `latents.decoder`); the first
            images are then kept as `{set}.pictures` uint8.
        captions: the prompts, for CLIP; labels: the file whose `labels` number the prompt of each row, by default
            the row's own number.
        cache: keep features of pretrained extractors in the cache folder, and look there, by the hash of `source` and
            of the extractor. For the data, which many experiments share.

    Returns:
        A card for each extractor: name, weights_sha256, protocol, and what else a classifier recorded.
    """
    if not extractors:
        return [_coordinates(path, source, sets)]
    import torch

    from ..data.fetch.downloads import cache_folder
    from ..data.prepare import as_float
    from ..networks.latents import decoder
    from ..runtime.devices import pick_device

    device = pick_device()
    loaded = [_Extractor(options, device) for options in extractors]
    decode = decoder(vae["folder"], vae["batch_size"], vae["precision"]) if vae else None
    texts = read_json(captions, most=bounds.CAPTIONS)["captions"] if captions else None
    if texts and labels:
        texts = [texts[label] for label in load_tensors(labels, ["labels"])[0]["labels"].tolist()]
    images, _ = load_tensors(source)
    chosen = [name for name in images if any(name == s or (s.endswith("_") and name.startswith(s)) for s in sets)]
    out: dict[str, torch.Tensor] = {}
    lasting = [e for e in loaded if e.fingerprint] if cache else []
    digest = sha256(source) if lasting else ""
    for name in chosen:
        asked = {e: cache_folder() / "features" / f"{_key(digest, name, e.fingerprint)}.safetensors" for e in lasting}
        kept = {e: load_tensors(file)[0] for e, file in asked.items() if file.is_file()}
        missing = [e for e in loaded if e not in kept]
        for e, tensors in kept.items():
            out |= {f"{e.name}/{name}.{what}": value for what, value in tensors.items()}
        parts: dict[_Extractor, list[dict[str, torch.Tensor]]] = {e: [] for e in missing}
        for first in range(0, len(images[name]) if missing else 0, batch_size):
            batch = as_float(images[name][first : first + batch_size])
            if decode is not None:
                batch = decode(batch)
                if first < PICTURES:
                    shown = [out[f"{name}.pictures"]] if first else []
                    out[f"{name}.pictures"] = torch.cat([*shown, _pictures(batch)])[:PICTURES]
            for e in missing:
                rows = None if texts is None else texts[first : first + len(batch)]
                parts[e].append(e(batch.clamp(-1, 1), rows))
        for e, pieces in parts.items():
            tensors = {what: torch.cat([piece[what] for piece in pieces]).cpu() for what in pieces[0]}
            if "features" in tensors:
                tensors["mean"] = tensors["features"].double().mean(0)
                tensors["covariance"] = torch.cov(tensors["features"].double().T)
            if e in asked:
                save_tensors(asked[e], tensors)
            out |= {f"{e.name}/{name}.{what}": value for what, value in tensors.items()}
    save_tensors(path, out)
    return [e.card for e in loaded]


def _key(digest: str, name: str, fingerprint: str) -> str:
    return hashlib.sha256(f"{digest} {name} {fingerprint}".encode()).hexdigest()


def _pictures(images: torch.Tensor) -> torch.Tensor:
    """Images as uint8, no larger than figures need."""
    from torch.nn import functional as F

    from .extractors import to_uint8

    if images.shape[-1] > PICTURE_SIDE:
        images = F.interpolate(images, size=PICTURE_SIDE, mode="area")
    return to_uint8(images).cpu()


class _Extractor:
    """One of `sources.Extractor`, loaded: images (B, C, H, W) in [−1, 1] and their prompts → what it finds."""

    def __init__(self, options: dict[str, Any], device: torch.device):
        self.kind, folder, self.aesthetic = options["kind"], options.get("folder"), None
        self.fingerprint = ""  # of pretrained extractors, whose features of an image may be kept between workflows
        if self.kind == "classifier":
            from ..networks import classifier

            self.network, self.card = classifier.load(folder)
            self.network.to(device)
            self.card = {"protocol": "clipped to [−1, 1], full resolution, float32 (no image format)"} | self.card
        else:
            from . import extractors

            self.network = extractors.load(self.kind, folder).to(device)
            self.fingerprint = self.network.fingerprint if self.kind != "clip" else ""  # a score is of a prompt too
            self.card = {
                "name": self.network.name,
                "weights_sha256": self.network.sha256,
                "protocol": self.network.protocol,
            }
            if options.get("aesthetic"):
                self.aesthetic = extractors.load("aesthetic", options["aesthetic"]).to(device)
                self.card["aesthetic_sha256"] = self.aesthetic.sha256
        self.name, self.device = self.card["name"], device

    def __call__(self, images: torch.Tensor, texts: list[str] | None) -> dict[str, torch.Tensor]:
        import torch

        with torch.no_grad():
            if self.kind == "classifier":
                hidden = self.network.features(images.float().to(self.device))
                return {"features": hidden, "predicted": self.network.head(hidden).argmax(1)}
            from .extractors import to_uint8

            pixels = to_uint8(images)
            if self.kind != "clip":
                return {"features": self.network(pixels)}
            scores = {}
            embedded = self.network.image_embeddings(pixels)
            if texts is not None:
                scores["clip_score"] = self.network.compare(embedded, texts)
            if self.aesthetic is not None:
                scores["aesthetic_score"] = self.aesthetic.score(embedded)
            return scores


def _coordinates(path: str | Path, source: str | Path, sets: Iterable[str]) -> Card:
    import numpy as np

    samples, _ = load_tensors(source, framework="np")
    out = {name: value for name, value in samples.items() if name.startswith("mode_")}
    for name in samples:
        if any(name == s or (s.endswith("_") and name.startswith(s)) for s in sets):
            points = samples[name].reshape(len(samples[name]), -1).astype(np.float64)
            out[f"{COORDINATES}/{name}.features"] = points
            out[f"{COORDINATES}/{name}.mean"] = points.mean(0)
            out[f"{COORDINATES}/{name}.covariance"] = np.cov(points.T).reshape(points.shape[1], points.shape[1])
    save_tensors(path, out)
    return {
        "name": COORDINATES,
        "weights_sha256": hashlib.sha256(b"").hexdigest(),
        "protocol": "coordinates as they are, float64",
    }
