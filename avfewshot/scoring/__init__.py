"""From the clips of a data set to logits of frozen and trained models, and from logits to predictions."""
