"""The authors' systems that `against_references.py` measures: one adapter per checkout, and none of their code."""
