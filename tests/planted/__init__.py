"""Bugs that are planted on purpose, one a patch, and the tests that catch each: see `tests/planted/__main__.py`."""
