# Runs specs: every extra, on CPUs unless TORCH_INDEX says otherwise. From the repository:
#   docker build -f cluster/docker/training.Dockerfile -t lepton-ray/training:0.1.0 .
# For GPUs, which need the larger torch of PyPI: --build-arg TORCH_INDEX=https://pypi.org/simple
FROM python:3.11.14-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=all
RUN python -m venv /opt/lepton
ENV PATH=/opt/lepton/bin:$PATH
COPY constraints.txt pyproject.toml README.md /src/
COPY lepton_ray /src/lepton_ray
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" --constraint /src/constraints.txt "/src[$EXTRAS]"

FROM python:3.11.14-slim-bookworm
RUN groupadd --gid 1000 ray && useradd --uid 1000 --gid 1000 --create-home ray \
  && install -d -o ray -g ray /home/ray/lepton_ray
COPY --from=build /opt/lepton /opt/lepton
ENV PATH=/opt/lepton/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/ray/lepton_ray
COPY jobs jobs
CMD ["lepton-ray", "--help"]
