"""Tokens and limits at both ways in: who is let in, who is not, and that no token is ever written anywhere."""

import asyncio
import contextlib
import hashlib
import json
import logging
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.cli.app import app
from lepton_ray.core.errors import ArtifactError, SpecError
from lepton_ray.serve import tokens
from lepton_ray.serve.endpoint import Limits, NoMeter
from lepton_ray.serve.guard import ALL_CALLERS, Guard, build_guard
from lepton_ray.serve.tokens import create_token, read_tokens, revoke_token
from lepton_ray.spec.release import AuthSpec, RateLimitSpec

from .conftest import RECORD, build_http_app
from .test_listener import get, post


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def all_scopes(file: Path) -> str:
    return create_token(file, "app", ("predict", "metadata"), None, None)


def guard_of(file: Path, **options: Any) -> Any:
    return build_guard(AuthSpec(tokens_file=str(file), **options), None, lambda what: None)


def bearer(token: str) -> bytes:
    return b"Authorization: Bearer " + token.encode()


def test_the_file_keeps_no_token(file: Path, all_scopes: str) -> None:
    assert all_scopes.startswith("lr_")
    assert len(all_scopes) == 46
    assert all_scopes not in file.read_text()
    (kept,) = read_tokens(file)
    assert (kept.id, kept.scopes, len(kept.sha256)) == ("app", ("predict", "metadata"), 64)
    file.chmod(0o600)
    create_token(file, "other", ("predict",), None, None)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    revoke_token(file, "app")
    assert [token.id for token in read_tokens(file)] == ["other"]


def test_tokens_that_are_made_at_once_are_all_kept(
    file: Path, all_scopes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    read = tokens.read_tokens

    def read_together(path: Path) -> list[tokens.Token]:
        found = read(path)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # for one that reads before the first has written
        return found

    monkeypatch.setattr(tokens, "read_tokens", read_together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda id: create_token(file, id, ("predict",), None, None), ("one", "two")))
    assert sorted(token.id for token in read(file)) == ["app", "one", "two"]


def test_wrong_ids_are_refused(file: Path, all_scopes: str) -> None:
    with pytest.raises(SpecError, match="'app' must be a new id"):
        create_token(file, "app", ("predict",), None, None)
    with pytest.raises(SpecError, match="'nobody' must be one of app"):
        revoke_token(file, "nobody")
    with pytest.raises(SpecError, match="id must be at most 63 lower-case"):
        create_token(file, "../x", ("predict",), None, None)
    with pytest.raises(SpecError, match=r"scopes must be predict or metadata, got \['admin'\]\. Choose another"):
        create_token(file, "fresh", cast("Any", ["admin"]), None, None)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"tokens": [{"id": "a", "sha256": "lr_SECRET", "scopes": ["predict"]}]}']
)
def test_a_file_that_is_none_is_refused_without_its_values(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(SpecError) as caught:
        guard_of(file)
    assert "SECRET" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused_at_the_start(file: Path) -> None:
    with pytest.raises(ArtifactError, match=r"serve\.auth\.tokens_file must be a file that each replica can read"):
        guard_of(file)


def wrong_values(token: str) -> list[bytes]:
    raw = token.encode()
    return [
        b"",
        b"Bearer",
        b"Bearer ",
        raw,
        b"Basic " + raw,
        b"Bearer  " + raw,
        b"Bearer " + raw.upper(),
        b"Bearer " + raw[3:],
        b"Bearer " + raw[:-1],
        b"Bearer " + raw + b"x",
        b"Bearer " + raw + b", Bearer " + raw,
        b"Bearer " + raw + b"\xff",
        b"Bearer " + b"\xc3\xbc" * 20,
        b"Bearer " + b"x" * 10_000,
    ]


def test_wrong_credentials_are_refused_at_the_listener(listen: Any, file: Path, all_scopes: str, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    guard, _ = guard_of(file)
    running = listen(guard=guard)
    client = running.connect()
    for value in wrong_values(all_scopes):
        answer = client.ask(post([RECORD], b"Authorization: " + value))
        assert answer.code == 401, value
        assert answer.headers["www-authenticate"] == 'Bearer realm="lepton_ray", error="invalid_token"'
        assert list(json.loads(answer.body)) == ["error"]
        assert all_scopes.encode() not in answer.body
        assert str(file).encode() not in answer.body
    twice = client.ask(post([RECORD], bearer(all_scopes), bearer(all_scopes)))
    thrice = client.ask(post([RECORD], bearer("x"), bearer("x"), bearer(all_scopes)))
    none = client.ask(post([RECORD]))
    assert (twice.code, thrice.code, none.code) == (401, 401, 401)
    assert none.headers["www-authenticate"] == 'Bearer realm="lepton_ray"'
    assert {call for call in running.meter.calls} == {("records", 401)}
    assert client.ask(post([RECORD], b"AUTHORIZATION: bEARER " + all_scopes.encode())).code == 200
    assert all_scopes not in caplog.text


def test_strangers_learn_nothing_and_health_is_open(listen: Any, file: Path, all_scopes: str) -> None:
    guard, _ = guard_of(file)
    running = listen(guard=guard)
    client = running.connect()
    for path in (b"/v2", b"/v2/models/demo", b"/v2/models/demo/ready", b"/nothing", b"/predict"):
        assert client.ask(get(path)).code == 401
    assert client.ask(get(b"/v2/models/demo", bearer(all_scopes))).code == 200
    for path in (b"/v2/health/live", b"/v2/health/ready"):
        assert client.ask(get(path)).code == 200
    running.call(running.listener.probe())


def test_a_strangers_body_is_neither_kept_nor_asked_for(listen: Any, file: Path, all_scopes: str) -> None:
    guard, _ = guard_of(file)
    running = listen(guard=guard)
    client = running.connect()
    client.send(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b" " * 90_000)
    assert running.ask(get(b"/v2/health/live")).code == 200
    assert running.listener.buffered_bytes == 0
    client.send(b" " * 10_000)
    assert client.read().code == 401
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    answer = client.ask(head)
    assert (answer.code, answer.headers["connection"]) == (401, "close")
    assert client.is_closed()


def test_each_pipelined_request_needs_its_own_token(listen: Any, file: Path, all_scopes: str) -> None:
    guard, _ = guard_of(file)
    client = listen(guard=guard).connect()
    good, bad = post([RECORD], bearer(all_scopes)), post([RECORD])
    client.send(good + bad + good + get(b"/v2") + post([RECORD], b"X: y", bearer("lr_x")) + good)
    assert [client.read().code for _ in range(6)] == [200, 401, 200, 401, 401, 200]


def test_scopes_and_expiry(listen: Any, file: Path) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    predict = create_token(file, "a", ("predict",), None, None)
    metadata = create_token(file, "b", ("metadata",), None, None)
    old = create_token(file, "c", ("predict",), yesterday, None)
    guard, _ = guard_of(file)
    client = listen(guard=guard).connect()
    assert client.ask(post([RECORD], bearer(predict))).code == 200
    refused = client.ask(post([RECORD], bearer(metadata)))
    assert refused.code == 403
    assert 'error="insufficient_scope", scope="predict"' in refused.headers["www-authenticate"]
    assert client.ask(get(b"/v2", bearer(metadata))).code == 200
    assert client.ask(get(b"/v2", bearer(predict))).code == 403
    assert client.ask(get(b"/nothing", bearer(predict))).code == 404
    assert client.ask(post([RECORD], bearer(old))).code == 401


def test_both_ways_in_refuse_alike(call_app: Any, mixed_package: Path, file: Path, all_scopes: str) -> None:
    guard, _ = guard_of(file)
    client = call_app(build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(), NoMeter(), guard))
    good = {"authorization": f"Bearer {all_scopes}"}
    assert client.post("/predict", json=[RECORD], headers=good).status_code == 200
    assert client.post("/predict", json=[RECORD]).status_code == 401
    assert client.post("/predict", json=[RECORD], headers=[*good.items(), *good.items()]).status_code == 401
    assert client.get("/v2").status_code == 401
    assert client.get("/v2/health/live").status_code == 200


def test_hashes_are_compared_in_constant_time(file: Path, all_scopes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, _ = guard_of(file)
    monkeypatch.setattr(tokens.hmac, "compare_digest", lambda one, other: False)
    assert guard.table.find(hashlib.sha256(all_scopes.encode()).digest()) is None


def test_a_change_is_followed_and_a_broken_file_is_not(file: Path, all_scopes: str, caplog: Any) -> None:
    failures: list[str] = []
    guard, watched = build_guard(AuthSpec(tokens_file=str(file)), None, failures.append)
    assert guard is not None
    assert guard.table is not None
    assert watched is not None
    digest = hashlib.sha256(all_scopes.encode()).digest()
    file.write_text('{"tokens": [{"id": "lr_SECRET"}]}')
    for _ in range(2):
        asyncio.run(watched.refresh())
        assert guard.table.find(digest) is not None
    file.unlink()
    asyncio.run(watched.refresh())
    assert guard.table.find(digest) is not None
    assert failures == ["token file"] * 2
    assert "the last good state stays in use" in caplog.text
    assert "SECRET" not in caplog.text
    watched._read = lambda: 1 / 0  # type: ignore[assignment]  what nobody has foreseen
    asyncio.run(watched.refresh())
    assert failures == ["token file"] * 3
    watched._read = file.read_bytes
    new = create_token(file, "new", ("predict",), None, None)
    asyncio.run(watched.refresh())
    assert guard.table.find(digest) is None
    assert guard.table.find(hashlib.sha256(new.encode()).digest()) is not None


def test_beyond_a_limit_callers_are_told_when_to_come_again(listen: Any, file: Path) -> None:
    slow = RateLimitSpec(requests_per_second=0.5, burst=1)
    limited = create_token(file, "limited", ("predict",), None, slow)
    free = create_token(file, "free", ("predict",), None, None)
    guard, _ = guard_of(file)
    running = listen(guard=guard)
    guard.purses["limited"].units = 1
    client = running.connect()
    assert client.ask(post([RECORD], bearer(limited))).code == 200
    refused = client.ask(post([RECORD], bearer(limited)))
    assert (refused.code, refused.headers["retry-after"]) == (429, "2")
    assert guard.is_short
    assert client.ask(post([RECORD], bearer(free))).code == 200


def test_what_all_callers_may_not_costs_none_of_ones_own(file: Path) -> None:
    create_token(file, "one", ("predict",), None, RateLimitSpec(requests_per_second=5))
    guard = Guard(RateLimitSpec(requests_per_second=1))
    guard.use(read_tokens(file))
    assert guard.table is not None
    (caller,) = guard.table.callers
    guard.purses["one"].units = 1
    denial = guard.admit(caller, "predict")
    assert denial is not None
    assert denial.code == 429
    assert guard.purses["one"].units == 1
    kept = guard.purses[ALL_CALLERS]
    guard.use(read_tokens(file))
    assert guard.purses[ALL_CALLERS] is kept


def test_the_commands(file: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["token", *arguments, "--file", str(file)])

    made = run("create", "app", "--scope", "metadata", "--expires-days", "1e-9", "--requests-per-second", "3")
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert token.startswith("lr_")
    listed = run("list", "--json")
    assert token not in listed.stdout
    (facts,) = json.loads(listed.stdout)["tokens"]
    assert (facts["id"], facts["expired"], facts["rate_limit"]["requests_per_second"]) == ("app", True, 3.0)
    assert "sha256" not in facts
    assert "app" in run("list").stdout
    assert run("create", "forever").exit_code == 0
    assert [facts["expired"] for facts in json.loads(run("list", "--json").stdout)["tokens"]] == [True, False]
    assert "never" in run("list").stdout
    assert run("create", "b", "--scope", "rule").exit_code == 2
    assert run("revoke", "app").exit_code == 0
    assert run("revoke", "app").exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--requests-per-second", "0"), "--requests-per-second: Input should be greater than 0"),
        (("--expires-days", "99999999"), "--expires-days must be"),
        (("--expires-days", "0"), "--expires-days must be more than 0, got 0"),
    ],
)
def test_options_of_a_token_that_cannot_be_are_explained(file: Path, options: tuple[str, str], message: str) -> None:
    done = CliRunner().invoke(app, ["token", "create", "app", *options, "--file", str(file)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert not file.exists()
