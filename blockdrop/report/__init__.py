"""What people read of a run: the table that Python's `train` and `evaluate` return; and one self-contained HTML
page in which a person explores what a policy network does with test images."""
