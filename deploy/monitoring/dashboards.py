"""Panels as Grafana's JSON, and where the files lie that the chart and Compose load.

    python -m deploy.monitoring.dashboards

writes them again after panels.py has changed; a test compares. Knows Grafana only through its own
SDK.
"""

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, Row
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from deploy.monitoring.board import Board, Panel
from deploy.monitoring.panels import BOARDS

FILES = Path(__file__).resolve().parents[2] / "helm" / "instructloop" / "files" / "dashboards"
"""In the chart, because Helm reads no file outside of it."""
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_BUILDERS: dict[str, Any] = {
    "graph": timeseries.Panel,
    "number": stat.Panel,
    "table": table.Panel,
}


def dashboard_json(board: Board) -> str:
    """One dashboard, as Grafana imports it."""
    built = (
        Dashboard(board.title)
        .uid(board.uid)
        .tags(["instructloop"])
        .refresh("30s")
        .time("now-6h", "now")
        .readonly()
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for title, panels in board.rows.items():
        built = built.with_row(Row(title))
        for panel in panels:
            built = built.with_panel(_panel(panel))
    return (
        json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(built.build())), indent=1) + "\n"
    )


def _panel(panel: Panel) -> Any:
    made = (
        _BUILDERS[panel.kind]()
        .title(panel.title)
        .description(panel.meaning)
        .unit(panel.unit)
        .datasource(_SOURCE)
        .span(8)
        .height(8)
    )
    for legend, query in panel.expressions.items():
        made = made.with_target(
            prometheus.Dataquery().expr(query).legend_format(legend).datasource(_SOURCE)
        )
    return made


def write_dashboards(folder: Path) -> list[Path]:
    """Write all dashboards into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for board in BOARDS:
        path = folder / f"{board.uid}.json"
        path.write_text(dashboard_json(board))
        written.append(path)
    return written


if __name__ == "__main__":
    for path in write_dashboards(FILES):
        print(path.name)
