"""Weight files: where they lie, and how they are read safely."""
