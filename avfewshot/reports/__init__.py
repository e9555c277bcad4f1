"""Results for programs (JSON, JSON lines, CSV), for terminals (tables) and for browsers (one HTML page)."""
