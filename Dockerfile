# Images of Kairos: `docker build --target cpu .` and `docker build --target gpu .`
#
# Give the bases by digest, so that the same commit makes the same image:
#   docker build --target cpu --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:... .
# All packages are installed from locks with hashes (`make hashes` writes them), as wheels wherever there are any.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04

# Kairos itself as a wheel, which both images install.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY deploy/docker/requirements-build.lock ./
RUN python3 -m venv /build && /build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md ./
COPY server server
COPY engines engines
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

# The environment without pip in it; only this folder goes into the image.
FROM ${PYTHON_IMAGE} AS cpu-packages
COPY deploy/docker/requirements.lock /src/
RUN python3 -m venv --without-pip /opt/kairos && python3 -m pip --python /opt/kairos/bin/python install \
    --no-cache-dir --require-hashes --only-binary :all: -r /src/requirements.lock
COPY --from=wheel /wheels /wheels
RUN python3 -m pip --python /opt/kairos/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kairos" \
      org.opencontainers.image.description="A gRPC model server that batches by each call's own deadline" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 kairos \
    && useradd --no-create-home --uid 10001 --gid kairos --home-dir /var/lib/kairos --shell /usr/sbin/nologin kairos \
    && install -d -o kairos -g kairos /var/lib/kairos /var/cache/kairos \
    && install -d /models
COPY --from=cpu-packages /opt/kairos /opt/kairos
ENV PATH=/opt/kairos/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KAIROS_HOST=0.0.0.0 \
    KAIROS_MODEL_REPOSITORY=/models \
    KAIROS_CACHE_DIR=/var/cache/kairos \
    KAIROS_STATE_DIR=/var/lib/kairos \
    KAIROS_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/kairos
EXPOSE 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["kairos", "health"]
ENTRYPOINT ["kairos"]
CMD ["serve"]

# The interpreter of the CUDA image's own distribution: an environment works only with the Python that made it.
FROM ${CUDA_IMAGE} AS gpu-base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM gpu-base AS gpu-packages
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/docker/requirements-build.lock deploy/docker/requirements-gpu.lock /src/
# TensorRT's two outer packages exist as sources only: a few lines that the locked setuptools packs.
RUN python3 -m venv --without-pip /opt/kairos \
    && python3 -m pip --python /opt/kairos/bin/python install \
    --no-cache-dir --require-hashes --only-binary :all: -r /src/requirements-build.lock \
    && python3 -m pip --python /opt/kairos/bin/python install \
    --no-cache-dir --require-hashes --no-build-isolation --only-binary :all: --no-binary tensorrt,tensorrt-cu13 \
    -r /src/requirements-gpu.lock
COPY --from=wheel /wheels /wheels
RUN python3 -m pip --python /opt/kairos/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM gpu-base AS gpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kairos-gpu" \
      org.opencontainers.image.description="A gRPC model server that batches by each call's own deadline, with CUDA" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 kairos \
    && useradd --no-create-home --uid 10001 --gid kairos --home-dir /var/lib/kairos --shell /usr/sbin/nologin kairos \
    && install -d -o kairos -g kairos /var/lib/kairos /var/cache/kairos \
    && install -d /models
COPY --from=gpu-packages /opt/kairos /opt/kairos
ENV PATH=/opt/kairos/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KAIROS_HOST=0.0.0.0 \
    KAIROS_MODEL_REPOSITORY=/models \
    KAIROS_CACHE_DIR=/var/cache/kairos \
    KAIROS_STATE_DIR=/var/lib/kairos \
    KAIROS_LOG_FORMAT=json \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/kairos
EXPOSE 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["kairos", "health"]
ENTRYPOINT ["kairos"]
CMD ["serve"]
