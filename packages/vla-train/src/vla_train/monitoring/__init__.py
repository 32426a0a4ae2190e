"""What a run says while it trains: progress, meters, trackers, tables."""
