"""Many processes on one bus, killed and stopped at random, and a checker for what they wrote down."""
