"""The page of an endpoint, in a real browser that asks a real listener."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lepton_ray.serve.guard import Guard
from lepton_ray.serve.tokens import create_token, read_tokens
from tests.browser import Browser
from tests.unit.serve.conftest import Running

_ANSWERED = """return (async () => {
  const byId = id => document.getElementById(id);
  for (const [name, value] of Object.entries(arguments[0])) document.querySelector(`[name="${name}"]`).value = value;
  document.querySelector("#record button").click();
  await until(() => byId("state").textContent === "");
  const bounds = byId(byId("answer").hidden ? "problem" : "answer").getBoundingClientRect();
  return {problem: byId("problem").textContent, isSeen: bounds.top >= 0 && bounds.top < innerHeight,
    rows: [...document.querySelectorAll("#shown tr")].map(row => [...row.children].map(cell => cell.textContent.trim()))};
})()"""
_UNTIL = """const until = async is => { while (!is()) await new Promise(done => setTimeout(done, 20)); };
"""
_ALSO_ASKED = """window.asked = 0;
const real = window.fetch;
window.fetch = (...call) => { window.asked += 1; return real(...call); };
"""


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Browser]]:
    with ExitStack() as stack:

        def start(folder: Path, width: int = 1280, form: str = "record", **options: Any) -> Browser:
            running = Running(folder, asyncio.new_event_loop(), **options)
            stack.callback(running.stop)
            stack.callback(browser.show, "about:blank")  # the browser lets its connections go
            browser.show(f"http://127.0.0.1:{running.port}/", width)
            browser.run(_UNTIL + "return until(() => !document.getElementById(arguments[0]).hidden)", form)
            return browser

        yield start


def _ask(browser: Browser, **values: Any) -> dict[str, Any]:
    answer: dict[str, Any] = browser.run(_UNTIL + _ANSWERED, values)
    return answer


def test_an_answer_and_a_refusal_are_seen_beside_the_button(show: Callable[..., Browser], mixed_package: Path) -> None:
    browser = show(mixed_package)
    refused = _ask(browser, size="S", age="old")
    assert "age" in refused["problem"]
    assert refused["isSeen"]
    answered = _ask(browser, size="S", age="30", colour="red")
    assert answered["problem"] == ""
    assert answered["isSeen"]
    shares = [float(text.strip("<>%\u00a0 ")) for _, text in answered["rows"][1:]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_a_picture_is_sent_as_a_file(show: Callable[..., Browser], picture_package: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 3), 200, np.uint8)).save(tmp_path / "a.png")
    browser = show(picture_package)
    assert "picture" in _ask(browser)["problem"]
    browser.choose("[name=picture]", str(tmp_path / "a.png"))
    assert _ask(browser)["rows"][0][0] == "label"


def test_the_token_is_asked_for(show: Callable[..., Browser], mixed_package: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token = create_token(file, "all", ["metadata", "predict"], None, None)
    guard = Guard()
    guard.use(read_tokens(file))
    browser = show(mixed_package, form="access", guard=guard)
    give = """const byId = id => document.getElementById(id);
        byId("token").value = arguments[0]; document.querySelector("#access button").click();
        return (async () => { await until(() => byId("state").textContent === ""); return byId("problem").textContent; })()"""
    assert "token" in browser.run(_UNTIL + give, "wrong")
    assert browser.run(_UNTIL + give, token) == ""
    assert _ask(browser, size="S", age="30")["problem"] == ""


def test_one_request_at_a_time_and_the_wait_is_said(show: Callable[..., Browser], mixed_package: Path) -> None:
    browser = show(mixed_package)
    twice = """document.querySelector("[name=size]").value = "S"; document.querySelector("[name=age]").value = 30;
        const button = document.querySelector("#record button"); button.click(); button.click();
        return (async () => { const said = document.getElementById("state").textContent;
            await until(() => document.getElementById("state").textContent === ""); return [said, window.asked]; })()"""
    said, asked = browser.run(_UNTIL + _ALSO_ASKED + twice)
    assert "Waiting" in said
    assert asked == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("Promise.reject(new TypeError('Failed to fetch'))", "cannot be reached"),
        ("Promise.resolve(new Response('<html>bad gateway', {status: 502}))", "status 502"),
    ],
)
def test_what_stands_between_is_told_of(
    show: Callable[..., Browser], mixed_package: Path, answer: str, told: str
) -> None:
    browser = show(mixed_package)
    browser.run(f"window.fetch = () => {answer}")
    assert told in _ask(browser, size="S", age="30")["problem"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(24.299999237060547, "24.3"), ([1.0000000001, 2.5], "1, 2.5"), (True, "true"), (None, "null"), ("a", "a")],
)
def test_numbers_are_shown_as_people_read_them(
    show: Callable[..., Browser], mixed_package: Path, value: Any, shown: str
) -> None:
    browser = show(mixed_package)
    body = json.dumps({"predictions": [{"value": value, "probabilities": {"no": 1e-9, "yes": 1 - 1e-9}}]})
    browser.run("window.fetch = async () => new Response(arguments[0])", body)
    assert _ask(browser)["rows"] == [["value", shown], ["yes", ">99.9 %"], ["no", "<0.1 %"]]


@pytest.mark.parametrize("width", [1280, 390])
def test_long_names_stay_in_their_place(show: Callable[..., Browser], mixed_package: Path, width: int) -> None:
    browser = show(mixed_package, width)
    browser.run("document.querySelector('.field span').textContent = 'a_name_that_goes_on'.repeat(9)")
    place = """const [name, field] = [...document.querySelector("#fields .field").children].map(part => part.getBoundingClientRect());
        const text = document.createRange(); text.selectNodeContents(document.querySelector("#fields .field span"));
        return [document.documentElement.scrollWidth, text.getBoundingClientRect().right <= field.left]"""
    assert browser.run(place) == [width, True]
