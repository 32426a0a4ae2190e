"""The robot's or simulator's side: no torch."""
