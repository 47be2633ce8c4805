# syntax=docker/dockerfile:1
# A site of a federation: one node that asks its server; it listens on nothing.
# Built from the root of the repository; docs/docker.md says how the base is pinned by digest.
ARG BASE=python:3.11-slim-trixie

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY common common
COPY client client
COPY server server
COPY simulations simulations
# Where packages come from is the builder's affair: a pip.conf as build secret, if any.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python -m venv /opt/venv \
    && /opt/venv/bin/pip install --constraint constraints.txt ".[site]" \
    && /opt/venv/bin/python -m compileall -q /opt/venv/lib

FROM ${BASE}
RUN groupadd --gid 10001 veilface \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/veilface \
        --shell /usr/sbin/nologin veilface \
    && install -d -m 0700 -o 10001 -g 10001 /var/lib/veilface /var/cache/veilface \
        /var/lib/veilface-odometer \
    && install -d -m 0755 /data
COPY --from=build /opt/venv /opt/venv
COPY docker/healthy.py /opt/healthy.py
ENV PATH=/opt/venv/bin:$PATH HOME=/var/lib/veilface PYTHONDONTWRITEBYTECODE=1 \
    VEILFACE_CACHE=/var/cache/veilface \
    VEILFACE_ODOMETER=/var/lib/veilface-odometer \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
USER 10001:10001
VOLUME ["/var/lib/veilface", "/var/cache/veilface", "/var/lib/veilface-odometer"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-P", "/opt/healthy.py", "site", "/var/lib/veilface/state"]
ENTRYPOINT ["veilface"]
CMD ["site", "up", "--bundle", "/run/secrets/bundle", \
    "--passphrase-file", "/run/secrets/passphrase", "--policy", "/run/secrets/policy", \
    "--data", "/data", "--state", "/var/lib/veilface/state"]
