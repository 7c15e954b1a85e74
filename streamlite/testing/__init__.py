"""For tests of code that uses streamlite: a virtual clock, and a pytest plugin that brings a bus a test."""

from streamlite.testing.clock import VirtualClock

__all__ = ["VirtualClock"]
