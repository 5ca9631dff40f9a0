# The service: python -m etl, as a user of its own, on a root file system that may be read-only.
# By tag: a digest is read from a registry, and none could be asked when this was written. To pin
# it: --build-arg BASE=python:3.11-slim-trixie@sha256:... ; see docs/deployment.md.
ARG BASE=python:3.11-slim-trixie

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# Dependencies first, a layer that changes only with the locks: wheels with the hashes there.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv --without-pip /opt/etl \
    && python -m pip --python /opt/etl/bin/python install \
        --require-hashes --only-binary :all: -r requirements.lock \
    && python -m pip install --require-hashes --only-binary :all: -r requirements-build.lock

# The package itself; nothing is downloaded from here on.
COPY pyproject.toml README.md LICENSE ./
COPY etl etl
COPY sql sql
RUN python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && python -m pip --python /opt/etl/bin/python install --no-index --no-deps dist/*.whl

FROM ${BASE}
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="searchflow-etl" \
      org.opencontainers.image.description="Reverse ETL: dbt marts in DuckDB to Postgres and Redis" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/etl /opt/etl
ENV PATH="/opt/etl/bin:${PATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /opt/etl
CMD ["python", "-m", "etl"]
