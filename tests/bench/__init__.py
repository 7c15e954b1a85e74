"""Figures as ratios against a floor: `python -m tests.bench`; `floors.py` defines the floors and stays as it is."""
