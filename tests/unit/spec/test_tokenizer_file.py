"""What is said of vocabulary files that cannot be taken."""

import pytest

from lepton_ray.spec import tokenizer_file
from lepton_ray.spec.tokenizer_file import read_tokenizer


def test_a_file_that_is_too_large_is_not_called_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_file, "_MAX_FILE_BYTES", 1)
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(
        ValueError, match=r"^must be at most 1 bytes, got '.*tokenizer\.json' of 2\. Take a smaller one$"
    ):
        read_tokenizer(str(file))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xff"])
def test_a_file_that_is_no_json(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^must be JSON, got '.*tokenizer\.json'"):
        read_tokenizer(str(file))
