"""Checkpoints of pi0 and pi0.5 as lerobot and openpi publish them, in this project's terms."""
