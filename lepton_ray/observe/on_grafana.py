"""Folder, data source, dashboards and contact point in Grafana, through grafana-api.

grafana-api 1.0.3 speaks http by default and puts names into paths as they are; here the URL says the protocol, things are
named by their uid, and what else goes into a path is quoted. Unified alerting, which it does not know, is called through its client.
"""

import hashlib
import json
import re
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from grafana_api.grafana_api import GrafanaAPI, GrafanaException

from lepton_ray.core.errors import GrafanaError
from lepton_ray.core.status import HTTP_NOT_FOUND
from lepton_ray.core.text import without_credentials
from lepton_ray.core.web import is_loopback
from lepton_ray.observe.render import DATA_SOURCE_UID

FOLDER_UID = "lepton-ray"
CONTACT_POINT = "lepton-ray operators"
_TAG = "lepton-ray"
_TIMEOUT_S = 30.0
_TOKEN = re.compile(r"[!-~]+")


class Grafana:
    """A Grafana, reached with the token of a service account that may edit folders, data sources and alerting.

    Raises:
        GrafanaError: From every method, if Grafana cannot be reached or refuses.
    """

    def __init__(self, url: str, token: str) -> None:
        try:
            at = urlsplit(url if "://" in url else f"https://{url}")
        except ValueError:  # half of an IPv6 address
            at = urlsplit("")
        if not at.hostname or at.username or at.scheme not in ("http", "https"):
            raise GrafanaError(
                f"--url must be https://HOST[:PORT][/PATH], got {without_credentials(url)!r}. Correct it"
            )
        if at.scheme == "http" and not is_loopback(at.hostname):
            raise GrafanaError(
                f"--url must be https where a token travels, got {url!r}. Use https, or a tunnel to localhost"
            )
        if not _TOKEN.fullmatch(token):  # the client's error would show it
            raise GrafanaError(
                "the token must be letters, digits and signs in one line without spaces, got something else. "
                "Set --token-env's variable to a service account's token"
            )
        prefix = f"{at.path.strip('/')}/" if at.path.strip("/") else ""
        self._api = GrafanaAPI(token, host=at.netloc, url_path_prefix=prefix, protocol=at.scheme, timeout=_TIMEOUT_S)

    def put_folder(self, title: str) -> str:
        """Make the folder of the dashboards; returns what was done."""
        if self._find("/folders/", FOLDER_UID) is not None:
            return "kept"
        self._call("POST", "/folders", {"uid": FOLDER_UID, "title": title})
        return "created"

    def put_data_source(self, prometheus_url: str) -> str:
        """Make the data source that the dashboards ask, or point it elsewhere; returns what was done."""
        wanted = {
            "uid": DATA_SOURCE_UID,
            "name": "Lepton Prometheus",
            "type": "prometheus",
            "access": "proxy",
            "url": prometheus_url,
        }
        there = self._find("/datasources/uid/", DATA_SOURCE_UID)
        if there is None:
            self._call("POST", "/datasources", wanted)
            return "created"
        if there.get("url") == prometheus_url:
            return "kept"
        self._call("PUT", f"/datasources/uid/{quote(DATA_SOURCE_UID, safe='')}", {**there, **wanted})
        return "updated"

    def put_dashboard(self, model: dict[str, Any], force: bool) -> str:
        """Store a dashboard; one that a person has saved since is left alone unless ``force``; returns what was done.

        Each dashboard carries a tag with its checksum and the version that Grafana counts with our save: a later version
        is a person's.
        """
        checksum = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:12]
        there = self._find("/dashboards/uid/", model["uid"])
        version = there["dashboard"]["version"] if there else 0
        marks = [tag for tag in there["dashboard"].get("tags") or [] if tag.startswith(f"{_TAG}:")] if there else []
        is_ours = not there or any(mark.endswith(f":{version}") for mark in marks)
        if not is_ours and not force:
            return "left alone: edited by hand"
        if is_ours and f"{_TAG}:{checksum}:{version}" in marks:
            return "kept"
        tags = [_TAG, f"{_TAG}:{checksum}:{version + 1}"]
        body = {
            "dashboard": {**model, "tags": tags, "version": version},
            "folderUid": FOLDER_UID,
            "overwrite": False,  # Grafana refuses the save if another came between
            "message": "lepton-ray dashboards push",
        }
        saved = self._call("POST", "/dashboards/db", body)
        if saved["version"] != version + 1:
            raise GrafanaError(
                f"{model['uid']} must become version {version + 1}, got {saved['version']}. Push again with --force"
            )
        return "updated" if there else "created"

    def put_contact_point(self, webhook_url: str) -> str:
        """Make the contact point of unified alerting, a webhook, or point it elsewhere; returns what was done."""
        path = "/v1/provisioning/contact-points"
        wanted = {"name": CONTACT_POINT, "type": "webhook", "settings": {"url": webhook_url}}
        found = self._call("GET", f"{path}?name={quote(CONTACT_POINT, safe='')}")
        there = next((one for one in found or [] if one["name"] == CONTACT_POINT), None)
        if there is None:
            self._call("POST", path, wanted)
            return "created"
        if there["settings"].get("url") == webhook_url:
            return "kept"
        self._call("PUT", f"{path}/{quote(there['uid'], safe='')}", wanted)
        return "updated"

    def _find(self, path: str, uid: str) -> Any:
        return self._call("GET", f"{path}{quote(uid, safe='')}", missing_is_none=True)

    def _call(self, method: str, path: str, body: Any = None, missing_is_none: bool = False) -> Any:
        try:
            return getattr(self._api, method)(path, json=body)
        except GrafanaException as error:
            if missing_is_none and error.status_code == HTTP_NOT_FOUND:
                return None
            raise GrafanaError(
                f"Grafana must take {method} {path}, got {error.message}. Check the token's rights"
            ) from error
        except (requests.RequestException, ValueError) as error:
            raise GrafanaError(f"Grafana must answer {method} {path}, got: {error}. Check --url") from error
