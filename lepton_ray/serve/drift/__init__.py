"""Windows of what replicas are asked and answer, held against the package's reference."""
