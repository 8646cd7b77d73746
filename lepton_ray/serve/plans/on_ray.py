"""Plans are Ray Serve's ``user_config``: new replicas get it before they are ready, and Ray Serve waits until all follow it."""

import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve._private.config import DeploymentConfig
from ray.serve.exceptions import RayServeException
from ray.serve.generated.serve_pb2 import ApplicationArgs, DeploymentArgs, DeploymentRoute

from lepton_ray.core.errors import EngineError, LeptonError
from lepton_ray.engine.faults import last_line
from lepton_ray.spec.rollout import TrafficPlan

DEPLOYMENT = "model"
FOLLOW_TIMEOUT_S = 300.0
_POLL_S = 0.2


def _controller() -> Any:
    return serve.context._get_global_client()._controller  # Ray 2.60 has no public way to an application's user_config


def _route_of(application: str) -> Any:
    """Return what Ray Serve knows of the application's deployment, or None if it has none of ours."""
    try:
        return DeploymentRoute.FromString(ray.get(_controller().get_deployment_info.remote(DEPLOYMENT, application)))
    except (RayServeException, RayTaskError):  # no Ray Serve here; a KeyError there
        return None


def read_plan(application: str) -> TrafficPlan | None:
    """Return the plan of a running application, or None if there is no such application of this project's."""
    route = _route_of(application)
    config = route and DeploymentConfig.from_proto(route.deployment_info.deployment_config).user_config
    return TrafficPlan.model_validate(config) if isinstance(config, dict) else None


def give_plan(application: str, plan: TrafficPlan) -> None:
    """Have all replicas of an application follow a plan, in place, and wait until they do.

    Everything but ``user_config`` is as Ray Serve has it, also the code's version, so it replaces no replica.

    Raises:
        EngineError: If Ray Serve does not take it, or the replicas are not ready in time.
    """
    try:
        info = _route_of(application)
        if info is None:
            raise no_application(application)
        deployment = info.deployment_info
        config = DeploymentConfig.from_proto(deployment.deployment_config)
        config.user_config = plan.model_dump(mode="json")
        config.version = deployment.version
        args = DeploymentArgs(
            deployment_name=DEPLOYMENT,
            deployment_config=config.to_proto_bytes(),
            replica_config=deployment.replica_config.SerializeToString(),
            deployer_job_id=ray.get_runtime_context().get_job_id(),
            ingress=True,
            route_prefix=info.route,
        )
        ray.get(
            _controller().deploy_applications.remote(
                {application: [args.SerializeToString()]}, {application: ApplicationArgs().SerializeToString()}
            )
        )
        _wait_until_running(application)
    except (RayError, RayServeException, RuntimeError, ValueError) as error:
        if isinstance(error, LeptonError):
            raise
        raise EngineError(
            f"the replicas of {application!r} must take the plan, got: {last_line(error)}", retryable=True
        ) from error


def _wait_until_running(application: str) -> None:
    deadline = time.monotonic() + FOLLOW_TIMEOUT_S
    while (found := serve.status().applications.get(application)) is None or found.status != "RUNNING":
        status = "gone" if found is None else str(found.status)
        if time.monotonic() > deadline or status == "DEPLOY_FAILED":
            raise EngineError(f"the application {application!r} must run again, but it is {status}", retryable=True)
        time.sleep(_POLL_S)


def no_application(application: str) -> EngineError:
    """Return the error of a name that no application of this project's has."""
    known = ", ".join(sorted(serve.status().applications)) or "none"
    return EngineError(
        f"{application!r} must be an application that lepton-ray deployed, got none of that name. Running: {known}"
    )
