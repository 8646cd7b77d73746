"""Section ``features`` against the columns of ``data``: what can be known to be wrong before any row is read."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lepton_ray.spec.clean_check import why_never
from lepton_ray.spec.data import DataSpec, ImageColumn, NumberColumn, SeriesColumn
from lepton_ray.spec.features import SECTIONS, FeaturesSpec, PolynomialFeatures
from lepton_ray.spec.features_category import CategoryFeatures, CategoryIdsEncoding, OrdinalEncoding, TargetEncoding
from lepton_ray.spec.features_content import (
    ChannelNormalisation,
    IdsEncoding,
    ImageFeatures,
    SeriesFeatures,
    SubwordTokens,
    TextFeatures,
)
from lepton_ray.spec.features_number import EdgeBins, GroupImpute, NumberFeatures, QuantileBins
from lepton_ray.spec.tokenizer_file import read_tokenizer

_MAX_PRODUCTS = 10_000


def check_features(spec: FeaturesSpec, data: DataSpec) -> list[str]:
    """Return what is wrong, a sentence each that begins with the path of the setting; empty if the sections fit."""
    checks = (_check_names, _check_columns, _check_several, _check_select)
    problems = (problem for check in checks for problem in check(spec, data))
    return list(dict.fromkeys(problems))  # a section for several columns is wrong once


def _check_names(spec: FeaturesSpec, data: DataSpec) -> Iterator[str]:
    for name, section in spec.columns.items():
        column = data.features.get(name)
        if column is None:
            yield f"features.columns.{name} must name a feature of data.columns, got {name!r}. {_choices(data.features)}"
        elif column.kind != section.kind:
            yield (
                f"features.columns.{name}.kind must be {column.kind!r}, the kind of the column, got {section.kind!r}. "
                "Change one of them"
            )


def _check_columns(spec: FeaturesSpec, data: DataSpec) -> Iterator[str]:
    with_ids = []
    for name, column in data.features.items():
        section = spec.of(name, column.kind)
        is_own = section is spec.columns.get(name)
        place = f"features.columns.{name}" if is_own else f"features.{SECTIONS[column.kind]}"
        if check := _CHECKS.get(column.kind):
            yield from check(place, name, section, data)
        if isinstance(section, TextFeatures) and isinstance(section.encode, IdsEncoding):
            with_ids.append(name)
    if len(with_ids) > 1:
        yield (
            f"features.texts.encode must be 'ids' for one text at most, got {', '.join(with_ids)}. "
            "Encode the others in features.columns another way"
        )


def _check_number(place: str, name: str, section: NumberFeatures, data: DataSpec) -> Iterator[str]:
    column = data.features[name]
    if isinstance(section.impute, GroupImpute):
        yield from _check_kind(f"{place}.impute.column", [section.impute.column], "category", data)
    if not isinstance(column, NumberColumn):
        return
    if section.transform == "box_cox" and column.max is not None and column.max <= 0:
        yield f"{place}.transform must not be 'box_cox' for {name!r}, whose values are at most {column.max:g}. Use yeo_johnson"
    if isinstance(section.scale, EdgeBins) and _stays_within(section):
        for edge in section.scale.edges:
            if (column.min is not None and edge <= column.min) or (column.max is not None and edge > column.max):
                yield (
                    f"{place}.scale.edges must lie above data.columns.{name}.min and not above its max, got {edge:g}: "
                    "no value can fall on one side of it. Remove it"
                )
    impute = 0.0 if section.impute == "zero" else section.impute
    if section.transform == "box_cox" and isinstance(impute, float | int) and impute <= 0:
        yield f"{place}.impute must be positive for 'box_cox', got {section.impute!r}. Use yeo_johnson"


def _stays_within(section: NumberFeatures) -> bool:
    """Whether what is binned lies within the least and greatest value that the column may have."""
    is_statistic = not isinstance(section.impute, float | int) and section.impute != "zero"
    return is_statistic and section.transform == "none"


def _check_category(place: str, name: str, section: CategoryFeatures, data: DataSpec) -> Iterator[str]:
    encode = section.encode
    if isinstance(encode, TargetEncoding) and data.task != "classification":
        yield f"{place}.encode must not be 'target' without a data.label that is a category to predict, got 'target'. Use frequency"
    if isinstance(encode, OrdinalEncoding) and encode.order is not None:
        allowed = getattr(data.features[name], "allowed", None)
        if lost := [value for value in encode.order if allowed is not None and value not in allowed]:
            yield f"{place}.encode.order must hold values of data.columns.{name}.allowed, got {lost[0]!r}. Remove it"
        elif never := [(value, found) for value in encode.order if (found := why_never(name, value, data))]:
            value, found = never[0]
            yield f"{place}.encode.order must hold values that {name} can have, got {value!r} ({found}). Change one of them"


def _check_text(place: str, name: str, section: TextFeatures, data: DataSpec) -> Iterator[str]:
    if not isinstance(section.tokens, SubwordTokens):
        return
    if not Path(section.tokens.tokenizer_file).exists() and getattr(data.source, "prepare", None):
        return  # which may write it too; the features look again
    place = f"{place}.tokens.tokenizer_file"
    try:
        file = read_tokenizer(section.tokens.tokenizer_file)
    except ValueError as error:
        yield f"{place} {error}"
        return
    steps = getattr(data.features[name], "normalise", ())
    if lost := [step for step in file.normalise if step not in steps]:
        yield (
            f"{place} must be used with normalise {lost[0]!r}, as its normalizer has it, got {list(steps)} for {name!r}. "
            f"Add it to data.columns.{name}.normalise"
        )
    least = len(file.before) + len(file.after)
    if isinstance(section.encode, IdsEncoding) and section.encode.max_length <= least:
        yield f"{place} must be used with a max_length above {least}, got {section.encode.max_length}. Raise it"


def _check_series(place: str, name: str, section: SeriesFeatures, data: DataSpec) -> Iterator[str]:
    column = data.features[name]
    if isinstance(column, SeriesColumn) and section.reach > column.length:
        yield (
            f"{place} must look back at most data.columns.{name}.length ({column.length}) values, got {section.reach}. "
            "Lower lags, windows or differences"
        )


def _check_image(place: str, name: str, section: ImageFeatures, data: DataSpec) -> Iterator[str]:
    column = data.features[name]
    if not isinstance(column, ImageColumn):
        return
    size = section.resize or (column.height, column.width)
    if section.crop is not None and (section.crop[0] > size[0] or section.crop[1] > size[1]):
        yield f"{place}.crop must be at most {list(size)}, the size of the image, got {list(section.crop)}. Lower it"
    if isinstance(section.normalise, ChannelNormalisation):
        for field in ("mean", "std"):
            if len(values := getattr(section.normalise, field)) != column.channels:
                yield (
                    f"{place}.normalise.{field} must hold one number for each of {column.channels} channels, "
                    f"got {len(values)}. Correct it"
                )


_CHECKS: dict[str, Callable[[str, str, Any, DataSpec], Iterator[str]]] = {
    "number": _check_number,
    "category": _check_category,
    "text": _check_text,
    "series": _check_series,
    "image": _check_image,
}


def _check_several(spec: FeaturesSpec, data: DataSpec) -> Iterator[str]:
    lengths = {
        name: column.length
        for name, column in data.features.items()
        if isinstance(column, SeriesColumn) and spec.of(name, "series").encode == "steps"
    }
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        yield f"features.series.encode must be 'steps' for series of one length only, got {shown}. Encode some as columns"
    for index, cross in enumerate(spec.crosses):
        yield from _check_kind(f"features.crosses.{index}.columns", cross.columns, "category", data)
    for name in ("polynomial", "pca"):
        section = getattr(spec, name)
        if section is None:
            continue
        place = f"features.{name}"
        if section.columns is not None:
            yield from _check_kind(f"{place}.columns", section.columns, "number", data)
            yield from _check_not_binned(f"{place}.columns", section.columns, spec, data)
        columns = numbers_for(section.columns, spec, data)
        if not columns:
            yield f"{place} must have number columns to work on, got none. Remove it"
        elif name == "polynomial" and section.interaction_only and len(columns) < 2:  # noqa: PLR2004  of a product
            yield f"{place}.columns must hold two numbers at least for interaction_only, got {len(columns)}. Add one"
        elif name == "polynomial" and (count := _count_products(len(columns), section)) > _MAX_PRODUCTS:
            yield f"{place} must make at most {_MAX_PRODUCTS} features, got {count}. Name fewer columns or lower degree"
        elif name == "pca" and (section.num_components or 1) > len(columns):
            yield f"{place}.num_components must be at most {len(columns)}, got {section.num_components}. Lower it"


def _count_products(columns: int, section: PolynomialFeatures) -> int:
    repeats = 0 if section.interaction_only else 1
    return sum(math.comb(columns + repeats * (degree - 1), degree) for degree in range(2, section.degree + 1))


def numbers_for(columns: tuple[str, ...] | None, spec: FeaturesSpec, data: DataSpec) -> list[str]:
    """Return the number columns that ``columns`` stands for, in the order of the data; None: all that are not binned."""
    return [
        name
        for name, column in data.features.items()
        if isinstance(column, NumberColumn) and (name in columns if columns is not None else not _is_binned(name, spec))
    ]


def numbers_kept(spec: FeaturesSpec, data: DataSpec) -> list[str]:
    """Return the number columns that the model gets as scaled numbers; ``select`` may leave out more of them."""
    replaced = numbers_for(spec.pca.columns, spec, data) if spec.pca is not None and not spec.pca.keep_columns else ()
    return [name for name in numbers_for(None, spec, data) if name not in replaced]


def _is_binned(name: str, spec: FeaturesSpec) -> bool:
    return isinstance(spec.of(name, "number").scale, EdgeBins | QuantileBins)


def _check_not_binned(place: str, columns: Iterable[str], spec: FeaturesSpec, data: DataSpec) -> Iterator[str]:
    for name in columns:
        if isinstance(data.features.get(name), NumberColumn) and _is_binned(name, spec):
            yield f"{place} must hold numbers that are scaled, got {name!r}, which is binned. Change its scale"


def _check_kind(place: str, columns: Iterable[str], kind: str, data: DataSpec) -> Iterator[str]:
    fitting = [name for name, column in data.features.items() if column.kind == kind]
    for name in columns:
        if name not in fitting:
            found = f", of kind {data.features[name].kind!r}" if name in data.features else ""
            yield f"{place} must name features of kind {kind!r}, got {name!r}{found}. {_choices(fitting)}"


def _check_select(spec: FeaturesSpec, data: DataSpec) -> Iterator[str]:
    if spec.select is None:
        return
    if not any(_is_flat(spec.of(name, column.kind)) for name, column in data.features.items()):
        yield "features.select must have features besides images, ids and steps to choose from, got none. Remove it"
    if spec.select.best is not None and data.task != "classification":
        yield "features.select.best must not be given without a data.label that is a category to predict. Remove it"


def _is_flat(section: Any) -> bool:
    """Whether a column becomes part of the vector of features."""
    has_encode = isinstance(section, TextFeatures | CategoryFeatures)
    is_ids = has_encode and isinstance(section.encode, IdsEncoding | CategoryIdsEncoding)
    is_steps = isinstance(section, SeriesFeatures) and section.encode == "steps"
    return not is_ids and not is_steps and not isinstance(section, ImageFeatures)


def _choices(names: Iterable[str]) -> str:
    shown = list(names)
    return f"Choose from {', '.join(shown)}" if shown else "There is none: remove it"
