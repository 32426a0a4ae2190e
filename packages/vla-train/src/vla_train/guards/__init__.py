"""What ends a run that cannot go on: bad numbers, dead ranks, signals; and what it says then."""
