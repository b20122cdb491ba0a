# The pipeline with everything that it runs on: jobs on Kubernetes (docs/kubernetes.md), or one machine with docker:
#   docker build --build-arg COMMIT=$(git describe --always --dirty --abbrev=40) --tag consistency-pipeline .
#   docker run --rm --volume results:/pipeline/results consistency-pipeline
# PIP_INDEX_URL and PIP_EXTRA_INDEX_URL, as --build-arg, say where packages come from (docs/environments.md).
ARG BASE=debian:bookworm-slim
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
COPY requirements.lock requirements-test.lock /opt/
# The Kubernetes plug-in has each pod install the storage plug-in anew: it shall find it here, at its pinned version.
# The last line mends the first plug-in: of a pod that failed it asks for the log of a start before, which there is none
# of. That ends the run and leaves the other pods running; mended, it reads the pod's log and tries again.
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --requirement /opt/requirements.lock \
    && pip install --no-cache-dir --constraint /opt/requirements-test.lock \
        snakemake-executor-plugin-kubernetes snakemake-storage-plugin-fs \
    && pip download --no-cache-dir --no-deps --dest /opt/wheels --constraint /opt/requirements-test.lock \
        snakemake-storage-plugin-fs \
    && sed -i '/previous=True,/d' "$(python -c 'import snakemake_executor_plugin_kubernetes as p; print(p.__file__)')"
ENV PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_FIND_LINKS=/opt/wheels PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /pipeline
COPY --chown=1000:1000 . .
# What results are traced to, where there is no git.
ARG COMMIT
ENV CONSISTENCY_COMMIT=${COMMIT}
USER 1000
CMD ["snakemake", "--cores", "all"]
