"""Checkpoints and resume states: what is written, by whom, and which of it is whole."""
