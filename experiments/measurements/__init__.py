"""Measurements done once, which explain what the library does and what it leaves."""
