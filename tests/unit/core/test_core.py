"""Core: imports that load no engine, errors that pickle, the environment in texts, files that appear whole."""

import importlib.metadata
import os
import pickle
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lepton_ray.core import errors, settings
from lepton_ray.core.errors import EngineError, LeptonError, SpecError
from lepton_ray.core.extras import _EXTRA_OF_MODULE, require
from lepton_ray.core.files import list_files, sha256_file, sha256_json, write_atomic, write_json
from lepton_ray.core.imports import load_function, source_digest
from lepton_ray.core.text import show

REPOSITORY = Path(__file__).parent.parent.parent.parent
_ENGINES = ("ray", "torch", "tensorflow", "mlflow", "pandas")


@pytest.mark.parametrize(
    "code",
    [
        "import lepton_ray",
        "import sys, runpy; sys.argv = ['lepton-ray', '--help']; runpy.run_module('lepton_ray', run_name='__main__')",
        "import lepton_ray.spec, lepton_ray.artifacts.predictor, lepton_ray.artifacts.store, lepton_ray.serve.http",
        "import lepton_ray.pipeline",
        "import lepton_ray.stages.export, lepton_ray.stages.train, lepton_ray.stages.tune",
    ],
)
def test_importing_loads_no_engine(code: str) -> None:
    report = f"import atexit, sys; atexit.register(lambda: print([m for m in {_ENGINES} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{report}\n{code}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def _examples() -> list[LeptonError]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LeptonError)]
    special = (SpecError, EngineError)
    return [
        SpecError(["line 3: seed must be given", "data must be given"], "a.yaml"),
        EngineError("no workers", retryable=True),
        *(kind("what went wrong") for kind in kinds if kind not in special),
    ]


@pytest.mark.parametrize("error", _examples(), ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: LeptonError) -> None:
    error.add_note("where it happened")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert copy.exit_status == {"SpecError": 2, "QualityGateError": 3, "BudgetError": 4}.get(type(error).__name__, 1)


def test_spec_error_lists_all_problems() -> None:
    assert str(SpecError(["a", "b"], "x.yaml")) == "x.yaml has 2 problems:\n  a\n  b"
    assert str(SpecError(["a"])) == "spec has 1 problem:\n  a"


def test_expand_replaces_references_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_A", "1${LEPTON_B}")
    monkeypatch.setenv("LEPTON_B", "2")
    assert settings.expand("x${LEPTON_A}-${LEPTON_B}$LEPTON_B${}") == "x1${LEPTON_B}-2$LEPTON_B${}"
    assert settings.references("${A}/${B_2}/${3}/$C") == ["A", "B_2"]


def test_expand_names_every_unset_variable_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_SECRET", "hush")
    monkeypatch.delenv("LEPTON_A", raising=False)
    monkeypatch.delenv("LEPTON_B", raising=False)
    with pytest.raises(SpecError) as caught:
        settings.expand("${LEPTON_A}${LEPTON_SECRET}${LEPTON_B}")
    assert len(caught.value.problems) == 2
    assert "LEPTON_A" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_each_package_of_an_extra_has_its_extra_named() -> None:
    """Where it is not installed, what needs it says what to install."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules: dict[str, set[str]] = {}
    for module, distributions in importlib.metadata.packages_distributions().items():
        for distribution in distributions:
            modules.setdefault(_dashed(distribution), set()).add(module)
    told = {module.partition(".")[0] for module in _EXTRA_OF_MODULE}
    asked = {
        _dashed(re.split(r"[\[><=!; ]", one)[0]) for name in extras.keys() - {"bench", "dev"} for one in extras[name]
    }
    installed = asked & modules.keys() - {"lepton-ray"}
    assert {"charset-normalizer", "h2", "mlflow", "river", "torch"} <= installed
    assert [package for package in sorted(installed) if not modules[package] & told] == []


def _dashed(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_require_names_the_extra_and_keeps_other_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(errors.MissingExtraError, match=r"'optuna', .* pip install 'lepton-ray\[pipeline\]'"):
        require("optuna", "this test")
    (tmp_path / "broken_module.py").write_text("import another_missing_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="another_missing_module"):
        require("broken_module", "this test")


def test_write_atomic_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "übung's\nfile.json"
    write_atomic(path, "old")
    write_atomic(path, b"new \x00")
    assert path.read_bytes() == b"new \x00"
    assert list_files(tmp_path) == ["a folder/übung's\nfile.json"]


def test_a_function_is_that_of_the_file_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where a file is repaired and the next cell runs again."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "code_of_mine.py"
    found = []
    for number in (1, 1, 2):
        file.write_text(f"def use():\n    return {number}\n")
        os.utime(file, (number, number))  # Python tells changes by the second
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: load_function("code_of_mine:use", "x")(), range(8)))
        found.append((set(answers), source_digest("code_of_mine:use")))
    assert [answers for answers, _ in found] == [{1}, {1}, {2}]
    assert found[0] == found[1] != found[2]
    assert source_digest("nothing_of_mine:use") is None


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: write_atomic(tmp_path / "a", text * 1000), "abcd" * 50))
    assert set((tmp_path / "a").read_text()) < set("abcd")
    assert len((tmp_path / "a").read_text()) == 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_write_atomic_keeps_the_old_file_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_write_json_refuses_what_is_not_json_before_it_touches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_digests_are_the_published_ones(tmp_path: Path) -> None:
    # NIST: SHA-256 of "abc"; and of the two bytes {}
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert sha256_json({"b": [1, 2.5], "a": None}) == sha256_json({"a": None, "b": [1, 2.5]})


def test_show_stays_small_for_values_large_and_deep() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "x" * 10**6, list(range(10**6)), 10**5000, {"k" * 999: "v" * 999}, b"\xff" * 10**6):
        assert 1 <= len(show(value)) <= 80
    assert show("it's") == '"it\'s"'
    assert show({"a": [1, None]}) == "{'a': [1, None]}"
    assert show("\ud800") == "'\\ud800'"
