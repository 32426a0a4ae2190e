"""Errors on held-out episodes, and success in the simulator."""
