"""Few-shot training: configuration, decoded clips on disk, checkpoints."""
