"""What the training loops share: flags, devices and precision, the run directory, opening models and data."""
