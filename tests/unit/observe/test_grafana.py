"""Dashboards as files, and in a stand-in of Grafana's documented HTTP API that keeps what it is given."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("grafana_foundation_sdk", reason="the extra observe is not installed")
pytest.importorskip("grafana_api", reason="the extra observe is not installed")

from lepton_ray.cli.app import app
from lepton_ray.core.errors import GrafanaError
from lepton_ray.observe.boards import BOARDS
from lepton_ray.observe.on_grafana import Grafana
from lepton_ray.observe.render import DATA_SOURCE_UID, render, write_all

GRAFANA = Path(__file__).parent.parent.parent.parent / "cluster/observability/grafana"
TOKEN = "of-a-service-account"


class StandIn(ThreadingHTTPServer):
    """Folders, data sources, dashboards and contact points, as docs/sources/developers/http_api of Grafana has them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.calls: list[tuple[str, str]] = []
        self.folders: dict[str, Any] = {}
        self.sources: dict[str, Any] = {}
        self.boards: dict[str, Any] = {}
        self.contacts: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/grafana"

    def answer(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        at = urlsplit(target)
        parts = [unquote(part) for part in at.path.removeprefix("/grafana/api/").split("/")]
        self.calls.append((method, at.path))
        match [method, *parts]:
            case ["GET", "folders", uid]:
                return found(self.folders.get(uid))
            case ["POST", "folders"]:
                self.folders[body["uid"]] = body
                return 200, body
            case ["GET", "datasources", "uid", uid]:
                return found(self.sources.get(uid))
            case ["POST", "datasources"]:
                self.sources[body["uid"]] = {**body, "id": 1, "version": 1}
                return 200, {"datasource": body, "id": 1}
            case ["PUT", "datasources", "uid", uid]:
                self.sources[uid] = body
                return 200, {"datasource": body}
            case ["GET", "dashboards", "uid", uid]:
                board = self.boards.get(uid)
                return found(board and {"dashboard": board, "meta": {"folderUid": "lepton-ray"}})
            case ["POST", "dashboards", "db"]:
                return self.save(body)
        return self.answer_alerting(method, at.query, parts, body)

    def answer_alerting(self, method: str, query: str, parts: list[str], body: Any) -> tuple[int, Any]:
        match [method, *parts]:
            case ["GET", "v1", "provisioning", "contact-points"]:
                name = parse_qs(query)["name"][0]
                return 200, [one for one in self.contacts if one["name"] == name]
            case ["POST", "v1", "provisioning", "contact-points"]:
                self.contacts.append({**body, "uid": "c/1"})
                return 202, self.contacts[-1]
            case ["PUT", "v1", "provisioning", "contact-points", uid]:
                self.contacts = [{**body, "uid": uid}]
                return 202, {"message": "contactpoint updated"}
        return 404, {"message": f"no such route: {method} {parts}"}

    def save(self, body: Any) -> tuple[int, Any]:
        board = body["dashboard"]
        there = self.boards.get(board["uid"])
        if there and board["version"] != there["version"] and not body["overwrite"]:
            return 412, {"status": "version-mismatch", "message": "The dashboard has been changed by someone else"}
        version = there["version"] + 1 if there else 1
        assert body["folderUid"] in self.folders
        self.boards[board["uid"]] = {**board, "id": 7, "version": version}
        return 200, {"uid": board["uid"], "version": version, "status": "success"}


def found(thing: Any) -> tuple[int, Any]:
    return (200, thing) if thing else (404, {"message": "not found"})


class Answers(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        status, answer = 401, {"message": "Invalid API key"}
        if self.headers["authorization"] == f"Bearer {TOKEN}":
            status, answer = self.server.answer(self.command, self.path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[StandIn]:
    made = StandIn()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)


def push(server: StandIn, *options: str) -> Any:
    return CliRunner().invoke(app, ["dashboards", "push", "--url", server.url, *options])


def writes(server: StandIn) -> list[tuple[str, str]]:
    return [call for call in server.calls if call[0] != "GET"]


def test_files_are_not_stale(tmp_path: Path) -> None:
    rendered = {path.name: path.read_text() for path in write_all(tmp_path)}
    stored = {path.name: path.read_text() for path in (GRAFANA / "dashboards").iterdir()}
    assert rendered == stored, "run: lepton-ray dashboards render"


def test_panels_have_ids_and_places_of_their_own() -> None:
    for board in BOARDS:
        panels = render(board)["panels"]
        assert [panel["id"] for panel in panels] == list(range(1, len(board.panels) + 1))
        assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
        assert {panel["datasource"]["uid"] for panel in panels} == {DATA_SOURCE_UID}


def test_file_provisioning_makes_the_same_data_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/lepton.yml").read_text())["datasources"]
    assert source["uid"] == DATA_SOURCE_UID


def test_push_makes_everything_and_again_changes_nothing(server: StandIn) -> None:
    first = push(server, "--contact-url", "https://hooks.example/one")
    assert first.exit_code == 0, first.output
    assert set(server.boards) == {board.uid for board in BOARDS}
    assert server.sources[DATA_SOURCE_UID]["url"] == "http://127.0.0.1:9090"
    assert server.contacts[0]["settings"] == {"url": "https://hooks.example/one"}
    num_writes = len(writes(server))
    again = push(server, "--contact-url", "https://hooks.example/one")
    assert again.exit_code == 0
    assert len(writes(server)) == num_writes
    assert again.output.count(": kept") == len(BOARDS) + 3


def test_push_updates_what_has_changed(server: StandIn) -> None:
    push(server, "--contact-url", "https://hooks.example/one")
    done = push(server, "--contact-url", "https://hooks.example/two", "--prometheus-url", "http://prometheus:9090")
    assert done.exit_code == 0
    assert server.sources[DATA_SOURCE_UID]["url"] == "http://prometheus:9090"
    assert server.contacts[0]["settings"] == {"url": "https://hooks.example/two"}
    assert ("PUT", "/grafana/api/v1/provisioning/contact-points/c%2F1") in server.calls
    grafana, model = Grafana(server.url, TOKEN), render(BOARDS[0])
    assert grafana.put_dashboard({**model, "title": "other"}, force=False) == "updated"
    assert server.boards[model["uid"]]["title"] == "other"


def test_a_dashboard_edited_by_hand_is_left_alone_without_force(server: StandIn) -> None:
    push(server)
    uid = BOARDS[0].uid
    edited = {**server.boards[uid], "title": "mine"}
    server.answer(
        "POST", "/grafana/api/dashboards/db", {"dashboard": edited, "folderUid": "lepton-ray", "overwrite": False}
    )
    done = push(server)
    assert done.exit_code == 1
    assert f"{uid}: left alone: edited by hand" in done.output
    assert server.boards[uid]["title"] == "mine"
    assert push(server, "--force").exit_code == 0
    assert server.boards[uid]["title"] == BOARDS[0].title
    assert push(server).exit_code == 0


def test_a_dashboard_that_somebody_else_made_is_left_alone(server: StandIn) -> None:
    server.folders["lepton-ray"] = {}
    model = render(BOARDS[0])
    server.save({"dashboard": {**model, "version": 0}, "folderUid": "lepton-ray", "overwrite": False})
    assert Grafana(server.url, TOKEN).put_dashboard(model, force=False).startswith("left alone")


def test_names_do_not_leave_their_place_in_a_path(server: StandIn) -> None:
    with pytest.raises(GrafanaError):
        Grafana(server.url, TOKEN).put_dashboard({**render(BOARDS[0]), "uid": "a/../../../admin/settings"}, force=False)
    assert server.calls[0] == ("GET", "/grafana/api/dashboards/uid/a%2F..%2F..%2F..%2Fadmin%2Fsettings")


def test_a_wrong_token_is_said_without_the_token(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFANA_TOKEN", "wrong-secret")
    done = push(server)
    assert done.exit_code == 1
    assert "Unauthorized" in done.output
    assert "wrong-secret" not in done.output


@pytest.mark.parametrize(
    "url", ["http://grafana.example", "ftp://grafana.example", "https://me:pw@grafana.example", ""]
)
def test_tokens_travel_by_https_alone(url: str) -> None:
    with pytest.raises(GrafanaError, match="--url must be https"):
        Grafana(url, TOKEN)


def test_https_is_the_default() -> None:
    assert Grafana("grafana.example/sub", TOKEN)._api.url == "https://grafana.example/sub/api"


def test_a_grafana_that_does_not_answer_is_an_error_of_ours(server: StandIn) -> None:
    with pytest.raises(GrafanaError, match="Check --url"):
        Grafana("http://127.0.0.1:1", TOKEN).put_folder("x")


@pytest.mark.parametrize("token", ["of-a-service-account\n", "of-a service-account", "of-a-service-account\u2026", ""])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(GrafanaError, match="the token must be") as caught:
        Grafana("http://127.0.0.1:1", token).put_folder("a")
    assert "of-a" not in str(caught.value)
    assert "of-a" not in str(caught.value.__cause__)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(GrafanaError, match="--url must be"):
        Grafana("https://[::1", TOKEN)
