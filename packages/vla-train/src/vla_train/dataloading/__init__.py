"""From data sets to a rank's batches, in an order that can resume."""
