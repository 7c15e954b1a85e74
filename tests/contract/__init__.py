"""The contract suite: what a user may rely on, asked of every backend through the public API only."""
