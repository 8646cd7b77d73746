"""``RunSpec``, the root: one frozen object that says everything a run is asked to do."""

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from lepton_ray.core import settings
from lepton_ray.spec.base import Name, Section, Uri, replace
from lepton_ray.spec.data import CleanSpec, DataSpec, ImageColumn
from lepton_ray.spec.model import CnnModel, FeaturesSpec, Model, TrainSpec
from lepton_ray.spec.release import EvaluateSpec, ExportSpec, RegisterSpec, ServeSpec
from lepton_ray.spec.tune import Choice, Domain, Integer, TuneSpec

_MAX_TRIED = 1000  # values of an integer range that are checked one by one


class RunSpec(Section):
    """From raw records to a live endpoint.

    Sections that are left out take their defaults; ``tune``, ``register`` and ``serve`` are stages that run only when
    their section is there.
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
    model: Model
    train: TrainSpec = TrainSpec()
    tune: TuneSpec | None = None
    export: ExportSpec = ExportSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    register_: Annotated[RegisterSpec | None, Field(alias="register")] = None
    serve: ServeSpec | None = None

    @model_validator(mode="after")
    def _check_model_fits_data(self) -> Self:
        images = [column for column in self.data.features.values() if isinstance(column, ImageColumn)]
        if isinstance(self.model, CnnModel):
            if not images:
                raise ValueError("model.kind must be 'mlp' for data without an image column, got 'cnn'. Use mlp")
            side = min(images[0].height, images[0].width)
            if side >> len(self.model.channels) == 0:
                raise ValueError(
                    f"model.channels must have at most {side.bit_length() - 1} entries for images of side {side}, "
                    f"got {len(self.model.channels)}. Remove some: each halves the image"
                )
        return self

    @model_validator(mode="after")
    def _check_release(self) -> Self:
        if self.register_ and self.register_.tracking_uri is None and settings.local_path(self.storage) is None:
            raise ValueError(
                f"register.tracking_uri must be given when storage is not local, got storage {self.storage!r}. "
                "Name an MLflow server"
            )
        if self.serve and self.serve.max_rows_per_request < self.export.golden_rows:
            raise ValueError(
                f"serve.max_rows_per_request must be at least export.golden_rows ({self.export.golden_rows}), which the "
                f"endpoint is asked, got {self.serve.max_rows_per_request}. Lower export.golden_rows"
            )
        return self

    @model_validator(mode="after")
    def _check_search_space(self) -> Self:
        problems = []
        for path, domain in (self.tune.space if self.tune else {}).items():
            for value in _extremes(domain):
                try:
                    self.with_value(path, value)
                except (ValidationError, KeyError) as error:
                    problems.append(
                        f"tune.space.{path} must only hold values that {path} takes, got {value!r} ({_reason(error)})"
                    )
                    break
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def with_value(self, path: str, value: Any) -> Self:
        """Return this spec with another value at ``path`` (``train.lr``) and no search, validated again.

        Raises:
            KeyError: If the path names no field.
            ValidationError: If the value does not fit.
        """
        section, _, field = path.partition(".")
        if field not in type(getattr(self, section)).model_fields:
            raise KeyError(f"{section} of kind {getattr(getattr(self, section), 'kind', section)!r} has no {field!r}")
        data = replace(self, (section, field), list(value) if isinstance(value, tuple) else value)
        return type(self).model_validate({**data, "tune": None})

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Dump under the names of the YAML file."""
        return super().model_dump(**{"by_alias": True, **options})


def _extremes(domain: Domain) -> list[Any]:
    if isinstance(domain, Choice):
        return list(domain.values)
    if isinstance(domain, Integer):
        return list(range(domain.low, domain.high + 1)[:_MAX_TRIED])
    return [domain.low, domain.high]


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"]
    return str(error.args[0])
