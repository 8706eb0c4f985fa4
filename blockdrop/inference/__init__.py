"""Fast inference: the planner, the engines, the executor, the operating point."""
