"""How time and memory grow with what there is: `python -m tests.bench.growth [AXIS ...]`.

`axes.py` measures along one axis each (messages, partitions, topics, groups, processes, sizes), `fit.py` says how steep
a curve is and whether that is allowed, `plot.py` draws (matplotlib, the extra `plot`).
"""
