"""Teachers: white-box networks, query-only teachers and their budgets."""
