"""What a run takes of memory, estimated before and said when it is too much."""
