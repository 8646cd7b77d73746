# Answers requests for model packages; no training framework. From the repository:
#   docker build -f cluster/docker/serving.Dockerfile -t lepton-ray/serving:0.1.0 .
#   docker run --shm-size 1g -p 8000:8000 -p 8001:8001 -v $PWD/runs/NAME/latest/export/package:/package:ro lepton-ray/serving:0.1.0
FROM python:3.11.14-slim-bookworm AS build
RUN python -m venv /opt/lepton
ENV PATH=/opt/lepton/bin:$PATH
COPY constraints.txt pyproject.toml README.md /src/
COPY lepton_ray /src/lepton_ray
RUN pip install --no-cache-dir --constraint /src/constraints.txt '/src[serve,registry]'

FROM python:3.11.14-slim-bookworm
RUN groupadd --gid 1000 ray && useradd --uid 1000 --gid 1000 --create-home ray
COPY --from=build /opt/lepton /opt/lepton
ENV PATH=/opt/lepton/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/ray
EXPOSE 8000 8001
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8001/v2/health/ready', timeout=4)"]
CMD ["lepton-ray", "serve", "/package", "--host", "0.0.0.0"]
