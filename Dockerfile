# The pipeline with everything that it runs on: jobs on Kubernetes (docs/kubernetes.md), or one machine with docker:
#   docker build --build-arg COMMIT=$(git describe --always --dirty --abbrev=40) --tag consistency-pipeline .
#   docker run --rm --volume results:/pipeline/results consistency-pipeline
# PIP_INDEX_URL and PIP_EXTRA_INDEX_URL, as --build-arg, say where packages come from (docs/environments.md).

# Of 2026-09-18. The digest names the index of the images of all architectures, amd64 and arm64 among them.
ARG BASE=debian:bookworm-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251
FROM ${BASE}

# git: Snakemake packs what git tracks and sends it to the pods. rsync: its storage plug-in copies with it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git python3 python3-venv rsync \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 pipeline \
    && install --directory --owner=1000 --group=1000 /pipeline /pipeline/results

ENV PATH=/opt/venv/bin:$PATH
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY requirements.lock requirements-torch.lock requirements-kubernetes.lock workflow/profiles/kubernetes/plugin.patch /opt/
# Every package must match a hash of the locks, except torch's builds (docs/environments.md).
# The Kubernetes plug-in has each pod install the storage plug-in anew: the pod finds it in /opt/wheels.
# plugin.patch changes the Kubernetes plug-in and says why. A plug-in that it does not fit ends the build.
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --no-deps --require-hashes --requirement /opt/requirements.lock \
    && pip install --no-cache-dir --requirement /opt/requirements-torch.lock \
    && pip download --no-cache-dir --no-deps --require-hashes --dest /opt/wheels \
        --requirement /opt/requirements-kubernetes.lock \
    && pip install --no-cache-dir --no-deps --require-hashes --no-index --find-links /opt/wheels \
        --requirement /opt/requirements-kubernetes.lock \
    && pip check \
    && git -C "$(python -c 'import site; print(*site.getsitepackages())')" apply /opt/plugin.patch
ENV PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_FIND_LINKS=/opt/wheels PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /pipeline
COPY --chown=1000:1000 . .
# What results are traced to, where there is no git.
ARG COMMIT
ENV CONSISTENCY_COMMIT=${COMMIT}
USER 1000
CMD ["snakemake", "--cores", "all"]
