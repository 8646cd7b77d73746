"""Clusters and jobs: files for Ray's launcher and for Kubernetes, submission of specs, and the doctor."""
