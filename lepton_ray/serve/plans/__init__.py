"""The plan that the replicas of an application follow."""
