"""Operations over edges; one folder each: `reference.py` is the specification in plain torch."""
