"""What studies share that compare many runs: their commands, evaluations, seconds and statistics."""
