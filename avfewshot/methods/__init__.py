"""Few-shot methods on cached embeddings of frozen towers: no decoding, no towers, seconds on a CPU."""
