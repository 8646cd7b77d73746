"""Evaluation on the held-out split: metrics, a baseline, gates and the report."""
