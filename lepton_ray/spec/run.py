"""``RunSpec``, the root: one frozen object that says everything a run is asked to do."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from lepton_ray.core import settings
from lepton_ray.spec.augment import check_augment
from lepton_ray.spec.backbone import check_local_backbones
from lepton_ray.spec.base import Name, Section, Uri, raise_problems, replace
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.clean_check import check_clean, check_windows
from lepton_ray.spec.cost import CostSpec
from lepton_ray.spec.data import DataSpec, ImageColumn
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_check import check_features, numbers_kept
from lepton_ray.spec.framework_check import check_framework
from lepton_ray.spec.model import Model, TrainSpec
from lepton_ray.spec.model_check import check_model, check_task, id_columns, image_shape, inputs_of
from lepton_ray.spec.pairs import check_pairs
from lepton_ray.spec.ranking import check_ranking
from lepton_ray.spec.release import (
    BASELINE,
    EvaluateSpec,
    ExportSpec,
    RegisterSpec,
    ServeSpec,
    bounds_of,
    is_database,
    metrics_of,
)
from lepton_ray.spec.space_check import find_problems
from lepton_ray.spec.tune import TuneSpec

_VALUE_BYTES, _PIXEL_BYTES = 4, 2  # of a pixel in JSON: three digits and a comma each, brackets around
_OF_MODEL = ("tune", "register_", "serve")


class RunSpec(Section):
    """From raw records to a live endpoint.

    Sections that are left out take their defaults; ``tune``, ``register`` and ``serve`` are stages that run only when
    their section is there. Without ``model`` the run ends with the features.
    """

    name: Name
    """Names the run directory, the registered model and the application."""
    storage: Uri = "runs"
    """Folder, or pyarrow filesystem URI, that holds the run directory ``NAME`` and by default MLflow's database."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Same seed, data and number of workers: same result."""
    data: DataSpec
    clean: CleanSpec = CleanSpec()
    features: FeaturesSpec = FeaturesSpec()
    model: Model | None = None
    train: TrainSpec = TrainSpec()
    tune: TuneSpec | None = None
    export: ExportSpec = ExportSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    register_: Annotated[RegisterSpec | None, Field(alias="register")] = None
    serve: ServeSpec | None = None
    cost: CostSpec | None = None
    """Prices and budgets. No result depends on them."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Tell all that does not fit together at once; what builds on something is looked at when that is sound."""
        problems = list(self._problems_of_model())
        if not problems:
            problems += [*self._problems_of_inputs(), *check_framework(self.model, self.train, self.export)]
        problems += [*self._problems_of_columns(), *self._problems_of_gates(), *self._problems_of_release()]
        raise_problems(problems or list(self._problems_of_search()))
        return self

    def _problems_of_model(self) -> Iterator[str]:
        if self.model is None:
            if sections := ", ".join(name.removesuffix("_") for name in _OF_MODEL if getattr(self, name) is not None):
                yield f"model must be given for {sections}. Add model, or remove {sections}"
            return
        if self.data.task is None:
            yield "data.label must be given for a model. Name the column to predict"
        elif problem := check_task(self.model, self.data.task):
            yield problem
        if not (self.data.split.val and self.data.split.test):
            yield "data.split.val and data.split.test must be more than 0 for a model. Give each a share"

    def _problems_of_inputs(self) -> Iterator[str]:
        """See what the features make of the columns."""
        inputs = inputs_of(self.features, self.data)
        shape = image_shape(self.features, self.data)
        found = (
            check_model(self.model, inputs, shape, id_columns(self.features, self.data))
            if self.model is not None
            else []
        )
        yield from found or check_local_backbones(self.model, self.train.framework, self.features, self.data)
        if self.train.augment is not None:
            yield from check_augment(
                self.train.augment,
                set(inputs.values()),
                has_classes=self.data.task == "classification",
                image_shape=shape,
                number_columns=numbers_kept(self.features, self.data),
            )

    def _problems_of_columns(self) -> Iterator[str]:
        yield from check_windows(self.data.windows, self.data)
        yield from check_clean(self.clean, self.data)
        yield from check_features(self.features, self.data)
        if self.evaluate.ranking:
            yield from check_ranking(self.evaluate.ranking, self.data)
        if self.model and self.data.ranking:
            yield from check_pairs(self.train, self.evaluate)

    def _problems_of_gates(self) -> Iterator[str]:
        task, gates = self.data.task, self.evaluate.gates
        if task is None or not gates:
            return
        known = metrics_of(task, self.evaluate)
        if task == "anomaly_detection" and self.data.label is None:
            known = ("flagged_fraction",)
        if not known:
            yield (
                f"evaluate.ranking must be given for evaluate.gates with data.ranking, got None and the gates "
                f"{', '.join(gates)}. Say what is relevant: evaluate.ranking: {{relevant: 1}}"
            )
        elif wrong := [name for name in gates if name.removeprefix(BASELINE) not in known]:
            yield (
                f"evaluate.gates must name metrics of the {task} of {self.data.label or 'rows'} ({', '.join(known)}), or of its baseline "
                f"({BASELINE}{known[0]} and so on), got {wrong[0]!r}. Name one of them"
            )
        for name, gate in gates.items():
            low, high = bounds_of(name.removeprefix(BASELINE))
            if gate.min is not None and gate.min > high:
                yield f"evaluate.gates.{name}.min must be at most {high:g}, got {gate.min:g}: no model meets it. 95 % is 0.95"
            if gate.max is not None and gate.max < low:
                yield f"evaluate.gates.{name}.max must be at least {low:g}, got {gate.max:g}: no model meets it. Raise it"

    def _problems_of_release(self) -> Iterator[str]:
        if self.register_ and settings.local_path(self.storage) is None:
            uri = self.register_.tracking_uri
            if uri is None or is_database(uri):
                yield (
                    f"register.tracking_uri must name an MLflow server when storage is not local, got storage {self.storage!r} and "
                    f"{'none' if uri is None else 'a database, which keeps no files'}. Give the server's address"
                )
        if self.serve and self.serve.max_rows_per_request < self.export.golden_rows:
            yield (
                f"serve.max_rows_per_request must be at least export.golden_rows ({self.export.golden_rows}), which the "
                f"endpoint is asked, got {self.serve.max_rows_per_request}. Lower export.golden_rows"
            )
        images = [column for column in self.data.features.values() if isinstance(column, ImageColumn)]
        pixels_bytes = sum(one.height * one.width * (_VALUE_BYTES * one.channels + _PIXEL_BYTES) for one in images)
        if (
            self.model
            and self.serve
            and self.serve.max_request_bytes < (most := self.export.golden_rows * pixels_bytes)
        ):
            yield (
                f"serve.max_request_bytes must be at least {most}, what {self.export.golden_rows} golden rows (export.golden_rows) of such images "
                f"take in JSON, as the endpoint is asked, got {self.serve.max_request_bytes}. Raise it, or lower export.golden_rows"
            )

    def _problems_of_search(self) -> Iterator[str]:
        if self.tune is None:
            return
        if self.train.use_tpu and self.tune.workers_per_trial == 1:
            yield (
                "tune.workers_per_trial must be at least 2 for train.use_tpu, as a trial of one process is on CPUs, got 1. "
                "Raise it, or search without train.use_tpu"
            )
            return
        trial = self
        if self.tune.workers_per_trial > 1:
            try:
                workers = {"train.min_workers": None, "train.num_workers": self.tune.workers_per_trial}
                trial = self.with_values(workers)
            except ValidationError as error:
                yield f"tune.workers_per_trial must fit train ({_reason(error)})"
                return
        specs = [self] if trial is self else [self, trial]

        def refusal(values: Mapping[str, Any]) -> str | None:
            try:
                for spec in specs:
                    spec.with_values(values)
            except (ValidationError, KeyError) as error:
                return _reason(error)
            return None

        yield from find_problems(self.tune.space, refusal)

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """Return this spec with other values by their paths (``train.lr``) and no search, validated again.

        Raises:
            KeyError: If a path names no field.
            ValidationError: If the values do not fit.
        """
        replaced = {}
        for path, value in values.items():
            section, *keys = path.split(".")
            there: Any = getattr(self, section).model_dump()
            for key in keys:
                if not isinstance(there, dict) or key not in there:
                    kind = getattr(getattr(self, section), "kind", section)
                    raise KeyError(f"{section} of kind {kind!r} has no {'.'.join(keys)!r}")
                there = there[key]
            replaced[(section, *keys)] = list(value) if isinstance(value, tuple) else value
        return type(self).model_validate({**replace(self, replaced), "tune": None})

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Dump under the names of the YAML file."""
        return super().model_dump(**{"by_alias": True, **options})

    def model_dump_json(self, **options: Any) -> str:
        """Dump as JSON under the names of the YAML file."""
        return super().model_dump_json(**{"by_alias": True, **options})


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error.args[0])
    details = error.errors()[0]
    if details["type"] == "tuple_type":
        return f"it must be a list, such as [{details['input']}]"
    return str(
        details["ctx"]["problems"][0] if details["type"] == "problems" else details["msg"].removeprefix("Value error, ")
    )
