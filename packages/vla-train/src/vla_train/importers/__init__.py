"""Checkpoints of other systems as checkpoints of this project; training knows nothing of them."""
