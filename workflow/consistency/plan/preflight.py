"""Before any job: are the files that an experiment needs here, or can they be had? Downloads nothing."""

from __future__ import annotations

import glob
from pathlib import Path

from .. import addresses
from ..config.settings import Experiment
from ..config.sources import Hub, Url
from ..data.fetch import downloads, network


def weights(experiment: Experiment) -> dict[str, Hub | Url]:
    """Part → where it is downloaded from: the teacher, the VAE, the extractors' weights."""
    parts: dict[str, Hub | Url] = {}
    if experiment.teacher.source == "hub":
        parts["teacher"] = experiment.teacher.hub
    if experiment.data.kind == "captions" and isinstance(experiment.data.vae, Hub):
        parts["vae"] = experiment.data.vae
    for extractor in experiment.extractors:
        if hasattr(extractor, "weights"):
            parts[extractor.kind] = extractor.weights
        if getattr(extractor, "aesthetic", None):
            parts["aesthetic"] = extractor.aesthetic
    return parts


def hidden(experiment: Experiment) -> dict[str, str]:
    """Variable of the environment → whole address, of addresses that jobs get without their query."""
    sources = [*weights(experiment).values(), getattr(experiment.data, "download", None)]
    return {
        name: url for source in sources if isinstance(source, Url) for name, url in addresses.hidden(source.url).items()
    }


def _data(experiment: Experiment) -> tuple[list[Url], list[str]]:
    """Files that the data stage would download, and lines for local files that are missing."""
    from ..data import datasets

    data = experiment.data
    if urls := datasets.needs(data.kind, getattr(data, "folder", None)):
        return [Url(**url) for url in urls], []
    if data.kind == "captions" and data.source is None:
        return [data.download], []
    source = getattr(data, "folder", None) or getattr(data, "source", None)
    if source is None or glob.glob(str(Path(source).expanduser())) or Path(source).expanduser().exists():
        return [], []
    from_where = f"; get the files from {datasets.IMAGENET_URL}" if data.kind == "imagenet32" else ""
    return [], [f"data: {source} does not exist{from_where}; place the files there, or set data's folder or source"]


def problems(experiment: Experiment, results: Path) -> list[str]:
    """One line for each file that is neither here nor to be had: its name, address, hash, and where to put it.

    Args:
        results: the experiment's folder of results, whose finished downloads and data are not needed again.
    """
    from ..data.fetch import hub

    lines, needs = [], list(weights(experiment).items())
    if not any((results / name).exists() for name in ("data.safetensors", "images.safetensors")):
        urls, missing = _data(experiment)
        needs, lines = needs + [("data", url) for url in urls], missing
    for part, source in needs:
        if (results / "downloads" / part).exists():
            continue
        if isinstance(source, Url):
            url, of_client = source.url, network.OF_REQUESTS
            here = (downloads.cache_folder() / "files" / source.name).is_file()
            advice = downloads.by_hand(source.url, source.name, source.sha256)
        else:
            url, of_client = hub.address(source.repo, source.revision), network.OF_HUB
            here = hub.is_cached(source.repo, source.revision, source.files)
            advice = hub.by_hand(source.repo, source.revision, source.sha256)
        if here or not (why := "offline is set" if downloads.offline() else network.unreachable(url, of_client)):
            continue
        lines.append(f"{part}: not in the cache and {why}: {addresses.public(url)}; {advice}")
    return lines
