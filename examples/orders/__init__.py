"""A shop in four programs on one bus: orders, stock, shipping, dashboard. `python -m examples.orders` runs them all."""
