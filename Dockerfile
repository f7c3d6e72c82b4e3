# The cookbook's images, reproducible from poetry.lock:
#
#   make docker-build                           dev: every group and the tools
#   make docker-build TARGET=prod GROUP=peft    prod: the core alone, or the core and one group
#
# NVIDIA's `base` image is enough: torch's wheels bring CUDA 13.2, cuDNN and NCCL along, so `runtime` would
# carry the same libraries a second time (2 GB), and `devel` adds nvcc and headers, which only matter to
# someone who writes CUDA code. From `base` come the check that the host's driver is new enough, its
# compatibility libraries, and the variables by which the NVIDIA runtime hands a GPU over.
ARG BASE_IMAGE=nvidia/cuda:13.2.1-base-ubuntu24.04

# --- base: system packages, Python, Poetry --------------------------------------------------

FROM ${BASE_IMAGE} AS base
SHELL ["/bin/bash", "-o", "errexit", "-o", "pipefail", "-c"]

# `.venv` and `.poetry` are in COOKBOOK_INSTALL: the working tree is mounted over /workspace.
ENV COOKBOOK_INSTALL=/opt/cookbook \
    PATH=/opt/cookbook/.venv/bin:$PATH \
    LANG=C.UTF-8 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

# Where downloads are kept between builds; only while building, so that the user keeps caches of their own.
ARG PIP_CACHE_DIR=/var/cache/pip
ARG POETRY_CACHE_DIR=/var/cache/pypoetry

# Debian's versions are not pinned: its mirrors delete a version when the next one is out.
# The secret `extra_ca` is one certificate (PEM) that a proxy between here and the index signs with. A secret
# that changes runs no step again; EXTRA_CA_DIGEST, which Make computes, does.
ARG EXTRA_CA_DIGEST=""
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    --mount=type=secret,id=extra_ca \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates make python3 python3-venv \
    && if [ -s /run/secrets/extra_ca ]; then \
        install -m 644 /run/secrets/extra_ca /usr/local/share/ca-certificates/extra-ca.crt; \
    fi \
    && update-ca-certificates

# The user's numbers are set last, in the images below, so that they rebuild nothing. What the group
# `installers` owns can be updated by that user, whichever numbers it has: `make install-peft`.
RUN if id ubuntu >/dev/null 2>&1; then userdel --remove ubuntu 2>/dev/null; fi \
    && groupadd --system installers \
    && useradd --create-home --uid 1000 --user-group --groups installers --shell /bin/bash cookbook \
    && install --directory --group installers --mode 2775 /opt/cookbook \
    && install --directory --owner cookbook --group cookbook /home/cookbook/.cache/huggingface

WORKDIR /workspace
COPY scripts/poetry.py scripts/
# The secret `pip_conf` names the package index where it is not the public one, with its password.
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    umask 002 && python3 scripts/poetry.py --version

# Inside a container JupyterLab has to listen on all of its addresses; the port is published on the
# host's 127.0.0.1 alone (docker-compose.yml), and every request needs the token.
ENV JUPYTER_IP=0.0.0.0
EXPOSE 8888
# `/api` says JupyterLab's version to anyone and nothing else.
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --start-interval=2s CMD \
    ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8888/api')"]
COPY scripts/entrypoint.sh /usr/local/bin/cookbook
ENTRYPOINT ["cookbook"]
CMD ["make", "jupyter"]

# --- core: what every notebook needs, shared by both images ---------------------------------

FROM base AS core
COPY pyproject.toml poetry.lock poetry.toml ./
RUN --mount=type=cache,target=/var/cache/pypoetry \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    umask 002 && python3 scripts/poetry.py install --no-root --compile

# --- dev: every group, the tools, and a compiler --------------------------------------------

FROM core AS dev
# Triton compiles a small C file against Python.h when it launches its first kernel (torch.compile).
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev openssh-client python3-dev
RUN --mount=type=cache,target=/var/cache/pypoetry \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    umask 002 && python3 scripts/poetry.py install --no-root --compile --with full-finetuning \
        --with peft --with instruction-tuning --with reasoning --with serving --with preference \
        --with sweep --with dev
ARG USER_UID=1000
ARG USER_GID=1000
COPY --chown=${USER_UID}:${USER_GID} . .
RUN scripts/finish_image.sh core full-finetuning peft instruction-tuning reasoning serving preference sweep dev all
USER ${USER_UID}

# --- prod: the core, or the core and one group; no compiler, no tools -----------------------

FROM core AS prod
# One of full-finetuning, peft, instruction-tuning, reasoning, serving, preference; empty for the core alone.
ARG GROUP=""
RUN --mount=type=cache,target=/var/cache/pypoetry \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    umask 002 && if [ -n "$GROUP" ]; then \
        python3 scripts/poetry.py install --no-root --compile --with "$GROUP"; \
    fi
ARG USER_UID=1000
ARG USER_GID=1000
COPY --chown=${USER_UID}:${USER_GID} . .
RUN scripts/finish_image.sh core ${GROUP:+"$GROUP"}
USER ${USER_UID}
