"""What stands idle on a cluster: looks at it, what is remembered between them, and the verdict."""
