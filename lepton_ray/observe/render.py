"""Dashboards as Grafana's JSON, for Grafana 10.1 and later."""

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, GridPos

from lepton_ray.observe.boards import BOARDS, Board, Panel

DATA_SOURCE_UID = "lepton-prometheus"
_COLUMNS, _WIDTH, _HEIGHT = 2, 12, 8  # Grafana's grid is 24 wide
_RANGE, _REFRESH = "now-1h", "30s"


def render(board: Board) -> dict[str, Any]:
    """Return what Grafana stores of a board."""
    builder = dashboard.Dashboard(board.title).uid(board.uid).time(_RANGE, "now").refresh(_REFRESH)
    for index, panel in enumerate(board.panels):
        builder.with_panel(_build_panel(index, panel))
    model: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(builder.build()))
    return model


def _build_panel(index: int, panel: Panel) -> Any:
    row, column = divmod(index, _COLUMNS)
    query = prometheus.Dataquery().expr(panel.query).legend_format(panel.legend).ref_id("A")
    return (
        timeseries.Panel()
        .id(index + 1)  # without one Grafana draws none of the page
        .title(panel.title)
        .unit(panel.unit)
        .grid_pos(GridPos(h=_HEIGHT, w=_WIDTH, x=column * _WIDTH, y=row * _HEIGHT))
        .datasource(DataSourceRef(type_val="prometheus", uid=DATA_SOURCE_UID))
        .with_target(query)
    )


def write_all(folder: Path) -> list[Path]:
    """Write every board as a file for Grafana's file provisioning; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for board in BOARDS:
        path = folder / f"{board.uid}.json"
        path.write_text(json.dumps(render(board), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        paths.append(path)
    return paths
