"""Budgets of query-only teachers: the ledger of paid answers, its limits, and rate limits."""
