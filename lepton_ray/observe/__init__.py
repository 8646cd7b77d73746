"""What an operator sees: the dashboards, and the way to put them into Grafana. Alerts are files in ``cluster/observability``."""
