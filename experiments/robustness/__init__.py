"""What tries to break the library: hostile files, and runs that are killed."""
