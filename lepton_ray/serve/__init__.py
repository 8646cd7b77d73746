"""Serving a package: Open Inference Protocol v2 and plain JSON records over HTTP and gRPC, on Ray Serve."""
