"""Rate limits that hold over all replicas: each spends units of its own, which a ledger of the application hands out."""
