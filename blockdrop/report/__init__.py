"""One self-contained HTML page in which a person explores what a policy network does with test images."""
