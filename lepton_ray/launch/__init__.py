"""Clusters and what runs on them: files for Ray's launcher and for Kubernetes, submission of specs, and the doctor.

A ``Description`` renders to a launcher file for each place (``ray_yaml``); ``check`` finds in any such file what Ray and the cloud
would refuse or, worse, ignore; ``machines`` brings a file's cluster up and down through Ray's own commands.
"""
