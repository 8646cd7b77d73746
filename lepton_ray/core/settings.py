"""What the environment says (addresses, credentials, tokens): the only reader and writer of ``os.environ``."""

import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lepton_ray.core.errors import SpecError
from lepton_ray.core.text import without_credentials

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

# Ray reads these when it starts. Two workers of a small machine share its cores with the driver, so they must not run
# at Ray's default niceness of 15; usage reports leave the machine only when the user asks for them.
_RAY_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else an interrupted search returns as if it had ended
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

# Set in the workers that train on JAX: a process has one backend of Keras for good, and what the user's shell says is none of it.
_KERAS_BACKEND = "LEPTON_RAY_KERAS_BACKEND"

# Of MLflow, which Ray imports too where it is installed: its usage reports as Ray's; and half a minute of tries where its own 7 are
# four minutes of silence with a server that is not there.
_MLFLOW_DEFAULTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4"}

# Of ONNX Runtime 1.32: it sends usage reports too, keeps an id of the machine below the user's home for them, and warns where it cannot.
_ONNXRUNTIME_DEFAULTS = {"ORT_DISABLE_TELEMETRY": "1"}

# TensorFlow's C++ code writes about the machine's instructions on standard error whenever it starts.
_TENSORFLOW_DEFAULTS = {"TF_CPP_MIN_LOG_LEVEL": "2"}


def references(text: str) -> list[str]:
    """Return the names of the environment variables that ``text`` refers to as ``${NAME}``."""
    return _REFERENCE.findall(text)


def expand(text: str) -> str:
    """Return ``text`` with each ``${NAME}`` replaced by the environment's value.

    The expanded text may hold a secret: use it at once, never store or log it.

    Raises:
        SpecError: If a variable is not set.
    """
    missing = [name for name in references(text) if name not in os.environ]
    if missing:
        raise SpecError(
            [f"{text!r} needs the environment variable {name}, which is not set. Set it." for name in missing]
        )
    return _REFERENCE.sub(lambda match: os.environ[match.group(1)], text)


def local_path(uri: str) -> Path | None:
    """Return the absolute path that a path or ``file://`` URI names, or None for another filesystem's URI."""
    text = expand(uri)
    if text.startswith("file://"):  # RFC 8089
        return Path(unquote(text.removeprefix("file://localhost").removeprefix("file://"))).absolute()
    return None if "://" in text else Path(text).expanduser().absolute()


def is_set(name: str) -> bool:
    """Whether the environment variable is set."""
    return name in os.environ


def ray_address() -> str | None:
    """Address of the cluster to join (``RAY_ADDRESS``), or None for a local one that ends with the process."""
    return os.environ.get("RAY_ADDRESS") or None


def in_ray_job() -> bool:
    """Whether this process was started by ``ray job submit``."""
    return "RAY_JOB_ID" in os.environ or "RAY_JOB_SUBMISSION_ID" in os.environ


def in_job_folder() -> bool:
    """Whether this process runs in the folder that was sent with its job, which Ray deletes afterwards."""
    return in_ray_job() and any(part.startswith("_ray_pkg_") for part in Path.cwd().parts)


def has_cluster() -> bool:
    """Whether the environment names a cluster; else a local one is started that ends with the process."""
    return ray_address() is not None or in_ray_job()


def serve_uses_haproxy() -> bool:
    """Whether Ray Serve is told to put HAProxy in the place of its proxy; Ray's processes read it when they start."""
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def ray_token() -> str | None:
    """The cluster's token, looked up where Ray looks: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def ray_auth_mode() -> str | None:
    """What Ray's processes here demand of others (``RAY_AUTH_MODE``): ``token``, or nothing."""
    return os.environ.get("RAY_AUTH_MODE") or None


def endpoint_token() -> str | None:
    """The bearer token that clients of endpoints send (``LEPTON_RAY_TOKEN``)."""
    return os.environ.get("LEPTON_RAY_TOKEN", "").strip() or None


def point_to_dashboard(port: int) -> None:
    """Tell Ray's processes where a local cluster's dashboard is.

    Ray Train asks it whether its controller lives; left to find it, Ray 2.60 waits 10 s at the end of each training.
    """
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"


def jobs_address() -> str | None:
    """URL of the dashboard that takes jobs (``RAY_API_SERVER_ADDRESS``)."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or None


def prepare_jobs(address: str | None) -> None:
    """Set what Ray's client of the Jobs API reads: it takes its address from the environment before the one it is given.

    Raises:
        SpecError: If neither ``address`` nor the environment names a dashboard by its URL.
    """
    url = address or jobs_address()
    if url is None or not _is_http_url(url):
        got = "none" if url is None else repr(without_credentials(url))
        raise SpecError([f"--address must be the URL of Ray's dashboard, http://HEAD:8265, got {got}"], "the command")
    os.environ["RAY_API_SERVER_ADDRESS"] = url.rstrip("/")
    prepare_ray()


def _is_http_url(text: str) -> bool:
    try:
        at = urlsplit(text)
        return at.scheme in ("http", "https") and bool(at.hostname) and at.port != 0
    except ValueError:  # half of an IPv6 address, or a port that is none
        return False


def prepare_ray() -> None:
    """Set Ray's start-up variables that the user has not set.

    With a token present and ``RAY_AUTH_MODE`` unset, Ray 2.60's servers demand the token while its clients do not send
    it, so the mode is set here for both. Ray reads it when it is imported: later it would reach only half of Ray.
    """
    prepare_mlflow()
    for name, value in _RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ and ray_token() is not None:
        os.environ["RAY_AUTH_MODE"] = "token"


def prepare_mlflow() -> None:
    """Set what MLflow reads when it is imported, and the user has not set."""
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)


def prepare_onnxruntime() -> None:
    """Set what ONNX Runtime reads when it is imported, and the user has not set."""
    for name, value in _ONNXRUNTIME_DEFAULTS.items():
        os.environ.setdefault(name, value)


def set_collective_interface(name: str) -> None:
    """Name the network interface that this process meets other workers at, unless the user has."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def jax_environment(platform: str) -> dict[str, str]:
    """Return what a process that trains on JAX must find when it starts; ``platform`` is ``cpu``, ``cuda`` or ``tpu``."""
    return {_KERAS_BACKEND: "jax", "JAX_PLATFORMS": platform}


def train_on_jax() -> None:
    """Let Keras be on JAX, on CPUs, in this process, which has not imported it or has it there already."""
    os.environ.update(jax_environment("cpu"))


def prepare_keras() -> None:
    """Set what Keras and TensorFlow read when they are imported; what the user has set stays, but for the backend.

    Ray gives a worker its CPUs as ``OMP_NUM_THREADS``, which torch follows; TensorFlow has a name of its own for them.
    """
    for name, value in _TENSORFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ["KERAS_BACKEND"] = os.environ.get(_KERAS_BACKEND, "tensorflow")
    if threads := os.environ.get("OMP_NUM_THREADS"):
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", threads)
