# syntax=docker/dockerfile:1
# The server of a federation: SuperLink, coordinator, front and page under one supervisor.
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
    && /opt/venv/bin/pip install --constraint constraints.txt ".[server]" \
    && /opt/venv/bin/python -m compileall -q /opt/venv/lib

FROM ${BASE}
RUN groupadd --gid 10001 veilface \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/veilface \
        --shell /usr/sbin/nologin veilface \
    && install -d -m 0700 -o 10001 -g 10001 /var/lib/veilface
COPY --from=build /opt/venv /opt/venv
COPY docker/healthy.py /opt/healthy.py
ENV PATH=/opt/venv/bin:$PATH HOME=/var/lib/veilface PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
USER 10001:10001
VOLUME /var/lib/veilface
EXPOSE 8443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-P", "/opt/healthy.py", "server", "/run/secrets/bundle", "127.0.0.1:8443"]
ENTRYPOINT ["veilface"]
CMD ["server", "up", "--bundle", "/run/secrets/bundle", \
    "--passphrase-file", "/run/secrets/passphrase", \
    "--state", "/var/lib/veilface/state", "--listen", "0.0.0.0:8443"]
