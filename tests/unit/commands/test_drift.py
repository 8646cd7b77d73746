"""Recent records beside a package's reference: how far they have moved, how good the answers are, and what the command says."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lepton_ray.artifacts.package import open_package, seal
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.reference import ALARMS
from lepton_ray.cli.app import app
from lepton_ray.commands.drift import measure_drift, read_gates, show_unknown
from lepton_ray.core.errors import DataError, RecordError, SpecError
from lepton_ray.pipeline import run
from lepton_ray.spec import parse_spec

_RULES = Path(__file__).parent.parent.parent.parent / "cluster/observability/rules/alerts.yml"


def write_rows(
    path: Path, rows: int, shift: float = 0.0, kinds: str = "aab", seed: int = 0, flip: bool = False
) -> Path:
    rng = random.Random(seed)
    lines = ["size,kind,is"]
    for _ in range(rows):
        size = rng.uniform(0, 100) + shift
        lines.append(f"{size:.2f},{rng.choice(kinds)},{'large' if (size > 50) != flip else 'small'}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sizes")
    spec = {
        "name": "sizes",
        "storage": str(folder / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(write_rows(folder / "rows.csv", 1500))},
            "columns": {"size": "number", "kind": "category", "is": "category"},
            "label": "is",
        },
        "model": {"kind": "mlp", "hidden": []},
        "train": {"epochs": 20, "lr": 0.05},
        "evaluate": {"baseline": "none"},
    }
    return str(run(parse_spec(yaml.safe_dump(spec), source="x"))["export"].path)


def test_records_of_the_same_kind_have_not_drifted(package: str, tmp_path: Path) -> None:
    found = measure_drift(package, str(write_rows(tmp_path / "new.csv", 800, seed=1)))
    assert (found.rows, found.refused, found.alarms, found.metrics) == (800, 0, [], None)
    assert {(column.side, column.name) for column in found.columns} == {
        *(("input", "size"), ("input", "kind")),
        *(("output", "label"), ("output", "probabilities")),
    }
    for picture in found.pictures:
        assert sum(picture.before) == pytest.approx(1)
        assert sum(picture.after) == pytest.approx(1)
        assert len(picture.names) == len(picture.before) == len(picture.after)


def test_records_that_have_moved_are_told(package: str, tmp_path: Path) -> None:
    found = measure_drift(package, str(write_rows(tmp_path / "new.csv", 800, shift=40, kinds="az", seed=1)))
    assert "input size: distribution" in found.alarms
    assert "input kind: unseen categories" in found.alarms
    assert "output label: distribution" in found.alarms
    kind = next(picture for column, picture in zip(found.columns, found.pictures, strict=True) if column.name == "kind")
    assert dict(zip(kind.names, kind.after, strict=True))["(unseen)"] == pytest.approx(0.5, abs=0.05)


def test_labels_tell_how_good_the_answers_are(package: str, tmp_path: Path) -> None:
    good = write_rows(tmp_path / "good.csv", 500, seed=1)
    with good.open("a") as file:
        file.write("10,a,\n20,b,medium\nbig,a,small\n")
    found = measure_drift(package, str(good), is_labelled=True)
    assert (found.rows, found.labelled, found.refused) == (501, 500, 2)
    assert (found.metrics or {})["accuracy"] > 0.9
    assert (found.validation or {})["val_accuracy"] > 0.9
    assert found.unknown_labels == {"medium": 1}
    turned = measure_drift(package, str(write_rows(tmp_path / "bad.csv", 500, seed=1, flip=True)), is_labelled=True)
    assert turned.alarms == []  # the records are the same: labels alone tell that they mean something else
    assert (turned.metrics or {})["accuracy"] < 0.1


def test_labels_that_are_series_are_measured(tmp_path: Path) -> None:
    for name, rows in (("rows", 300), ("new", 50)):
        lines = [f'{size},"[{size}, {2 * size}]"' for size in range(rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["size,next", *lines]))
    spec = {
        "name": "series",
        "storage": str(tmp_path / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(tmp_path / "rows.csv")},
            "columns": {"size": "number", "next": {"kind": "series", "length": 2}},
            "label": "next",
        },
        "model": {"kind": "linear"},
        "train": {"epochs": 60, "lr": 0.1},
        "evaluate": {"baseline": "none"},
    }
    package = str(run(parse_spec(yaml.safe_dump(spec), source="x"))["export"].path)
    found = measure_drift(package, str(tmp_path / "new.csv"), is_labelled=True)
    assert found.labelled == 50
    assert (found.metrics or {})["r2"] > 0.9


def test_a_record_that_overflows_is_refused_alone(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Predictor.run

    def overflowing(self: Predictor, feeds: Any) -> Any:
        if (feeds["numbers"] > 1e99).any():
            raise RecordError("records[0] must give finite probabilities")
        return answer(self, feeds)

    monkeypatch.setattr(Predictor, "run", overflowing)
    (tmp_path / "new.csv").write_text("size,kind,is\n1,a,small\n1e300,a,large\n99,b,large\n")
    found = measure_drift(package, str(tmp_path / "new.csv"), is_labelled=True)
    assert (found.rows, found.labelled, found.refused) == (2, 2, 1)
    assert (found.metrics or {})["accuracy"] == 1


def test_why_no_record_can_be_scored_is_told(package: str, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("size,kind,is\nbig,a,small\nhuge,b,large\n")
    with pytest.raises(DataError, match=r"can score, got none of 2 \(the first: size must be a number, got 'big'"):
        measure_drift(package, str(tmp_path / "new.csv"))


def test_records_without_a_label_cannot_be_measured(package: str, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("size,kind,is\n1,a,\n")
    with pytest.raises(DataError, match="must hold records"):
        measure_drift(package, str(tmp_path / "new.csv"), is_labelled=True)
    (tmp_path / "new.csv").write_text("size,kind,is\n1,a,medium\n")
    with pytest.raises(
        DataError, match=r"is must hold labels .* \(large, small\), got none in 1 rows: 'medium' 1\. Give"
    ):
        measure_drift(package, str(tmp_path / "new.csv"), is_labelled=True)
    (tmp_path / "new.csv").write_text("size,kind\nx,a\n")
    with pytest.raises(DataError, match="must hold records"):
        measure_drift(package, str(tmp_path / "new.csv"))


def report(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["drift", "report", *map(str, arguments)])


def test_the_command_writes_a_page_and_says_by_its_status_what_is_wrong(package: str, tmp_path: Path) -> None:
    good, moved = write_rows(tmp_path / "good.csv", 600, seed=1), write_rows(tmp_path / "moved.csv", 600, shift=40)
    done = report(package, good, "--check", "--labelled", "--min", "accuracy=0.9", "-o", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.html").read_text()
    assert "size" in page
    assert "drift is an excess above: PSI 0.25, unseen 5%, missing 10%" in page
    assert 'class="bar b"' in page
    assert "accuracy" in page
    failed = report(package, moved, "--check", "--json")
    assert failed.exit_code == 3
    answer = json.loads(failed.stdout)
    assert "input size: distribution" in answer["problems"]
    assert {column["name"] for column in answer["columns"]} >= {"size", "kind"}
    assert report(package, moved).exit_code == 0
    missed = report(package, good, "--labelled", "--min", "accuracy=1.1", "--max", "log_loss=0")
    assert missed.exit_code == 3
    assert "not met: accuracy must be at least 1.1" in missed.output
    assert "not met: log_loss must be at most 0" in missed.output


def test_of_many_labels_the_first_are_told() -> None:
    assert show_unknown({f"c{number}": 1000 for number in range(9)}) == (
        "'c0' 1,000, 'c1' 1,000, 'c2' 1,000, 'c3' 1,000, 'c4' 1,000 and 4 more"
    )
    assert show_unknown({"c": 1}) == "'c' 1"


def test_labels_that_the_package_does_not_know_are_told(package: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "new.csv", 100, seed=1)
    with path.open("a") as file:
        file.write("10,a,tiny\n" * 3 + "10,a,huge\n" * 7 + "".join(f"10,a,\x1b{i}\n" for i in range(5)))
    done = report(package, path, "--labelled", "-o", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    told = "labels that the package does not know, which no metric is of: 'huge' 7, 'tiny' 3, "
    assert told in done.stderr
    assert done.stderr.splitlines()[-1].endswith(" and 2 more")
    assert "\x1b" not in done.stderr
    assert "100 labelled rows" in done.stdout
    assert "labels that the package does not know" in (tmp_path / "page.html").read_text()
    answer = json.loads(report(package, path, "--labelled", "--json").stdout)
    assert (answer["rows"], answer["labelled"], sum(answer["unknown_labels"].values())) == (115, 100, 15)
    assert list(answer["unknown_labels"].items())[:2] == [("huge", 7), ("tiny", 3)]
    assert json.loads(report(package, path, "--json").stdout)["unknown_labels"] == {}


def test_the_page_holds_no_markup_from_data(package: str, tmp_path: Path) -> None:
    changed = tmp_path / "package"
    changed.mkdir()
    for path in Path(package).iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    stored = (changed / "reference.json").read_text()
    (changed / "reference.json").write_text(stored.replace('"a":', '"<script>x":'))
    seal(changed)
    assert open_package(changed)
    done = report(changed, write_rows(tmp_path / "new.csv", 100), "-o", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;x" in page
    assert "<script" not in page


def test_wrong_bounds_are_told(package: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="METRIC=VALUE"):
        read_gates(["accuracy"], [], is_labelled=True)
    for least, most in ((["accuracy=nan"], []), (["accuracy=inf"], []), (["accuracy=2"], ["accuracy=1"])):
        with pytest.raises(SpecError, match="--min and --max of accuracy must be finite bounds"):
            read_gates(least, most, is_labelled=True)
    with pytest.raises(SpecError, match="--labelled"):
        read_gates(["accuracy=1"], [], is_labelled=False)
    done = report(package, write_rows(tmp_path / "new.csv", 100), "--labelled", "--min", "acuracy=1")
    assert done.exit_code == 2
    assert "must name metrics (accuracy" in done.output


def test_reports_and_alert_rules_have_the_same_bounds() -> None:
    rules = [rule["expr"] for group in yaml.safe_load(_RULES.read_text())["groups"] for rule in group["rules"]]
    for name, bound in ALARMS.items():
        asking = [expression for expression in rules if f"ray_lepton_drift_{name}" in expression]
        assert asking
        assert all(f"> {bound:g} and" in expression for expression in asking)
