"""One run: teacher, stages, student, controls, test."""
