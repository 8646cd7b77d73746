"""Collect and clean: functions from Arrow tables to Arrow tables, driven in this process or by Ray Data."""
