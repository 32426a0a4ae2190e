"""What importers of foreign checkpoints have in common."""
