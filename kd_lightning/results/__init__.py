"""Reading finished runs, and tables, figures and pages of their results."""
