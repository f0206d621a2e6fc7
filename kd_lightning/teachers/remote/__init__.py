"""Clients of query-only teachers: HTTP, functions, networks."""
