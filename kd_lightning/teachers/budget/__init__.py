"""Questions that are paid for: the ledger and its limits."""
