"""``RunSpec``, the root: one frozen object that says everything a run is asked to do."""

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from lepton_ray.core import settings
from lepton_ray.spec.augment import check_augment
from lepton_ray.spec.base import Name, Section, Uri, replace
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.clean_check import check_clean, check_windows
from lepton_ray.spec.data import DataSpec, ImageColumn, TextColumn
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_check import check_features
from lepton_ray.spec.features_content import IdsEncoding, ImageFeatures
from lepton_ray.spec.framework_check import check_framework
from lepton_ray.spec.model import CnnModel, Model, TrainSpec
from lepton_ray.spec.release import EvaluateSpec, ExportSpec, RegisterSpec, ServeSpec
from lepton_ray.spec.tune import Choice, Domain, Integer, TuneSpec

_OF_MODEL = ("tune", "register_", "serve")
_MAX_TRIED = 1000  # values of an integer range that are checked one by one


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

    @model_validator(mode="after")
    def _check_model_fits_data(self) -> Self:
        images = [column for column in self.data.features.values() if isinstance(column, ImageColumn)]
        if self.model is None and (needing := [name for name in _OF_MODEL if getattr(self, name) is not None]):
            sections = ", ".join(name.removesuffix("_") for name in needing)
            raise ValueError(f"model must be given for {sections}. Add model, or remove {sections}")
        if self.model is not None and self.data.label is None:
            raise ValueError("data.label must be given for a model. Name the column to predict")
        if self.model is not None and not (self.data.split.val and self.data.split.test):
            raise ValueError("data.split.val and data.split.test must be more than 0 for a model. Give each a share")
        if isinstance(self.model, CnnModel):
            if not images:
                raise ValueError("model.kind must be 'mlp' for data without an image column, got 'cnn'. Use mlp")
            image = next(name for name, column in self.data.features.items() if isinstance(column, ImageColumn))
            side = min(_seen_shape(images[0], self.features.of(image, "image"))[1:])
            if side >> len(self.model.channels) == 0:
                raise ValueError(
                    f"model.channels must have at most {side.bit_length() - 1} entries for images of side {side}, "
                    f"got {len(self.model.channels)}. Remove some: each halves the image"
                )
        return self

    @model_validator(mode="after")
    def _check_model_input(self) -> Self:
        """A model family takes one input today; see what the features make of the columns."""
        images = [(name, column) for name, column in self.data.features.items() if isinstance(column, ImageColumn)]
        texts = [name for name, column in self.data.features.items() if isinstance(column, TextColumn)]
        has_tokens = any(isinstance(self.features.of(name, "text").encode, IdsEncoding) for name in texts)
        has_table = len(images) < len(self.data.features) and not (has_tokens and len(texts) == len(self.data.features))
        inputs = [
            name
            for name, is_there in (("an image", images), ("token ids", has_tokens), ("columns", has_table))
            if is_there
        ]
        if self.model is not None and (has_tokens or len(inputs) > 1):
            raise ValueError(
                f"model must be of a kind that takes {' and '.join(inputs)}, got {self.model.kind!r}, which takes an image or "
                "columns. Ignore the other columns, or encode texts another way than 'ids'"
            )
        if self.train.augment is not None:
            name, column = images[0] if images else ("", None)
            shape = _seen_shape(column, self.features.of(name, "image")) if column else None
            problems = check_augment(self.train.augment, bool(images), has_tokens, has_table, image_shape=shape)
            if problems:
                raise PydanticCustomError("problems", "{problems}", {"problems": problems})
        return self

    @model_validator(mode="after")
    def _check_framework(self) -> Self:
        if problems := check_framework(self.model, self.train, self.export):
            raise PydanticCustomError("problems", "{problems}", {"problems": problems})
        return self

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        problems = [
            *check_windows(self.data.windows, self.data),
            *check_clean(self.clean, self.data),
            *check_features(self.features, self.data),
        ]
        if problems:
            raise PydanticCustomError("problems", "{problems}", {"problems": problems})
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


def _seen_shape(column: ImageColumn, features: ImageFeatures) -> tuple[int, int, int]:
    """Channels, rows and columns of an image as the model sees it."""
    rows, columns = features.crop or features.resize or (column.height, column.width)
    return column.channels, rows, columns


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
