"""Prepared data: clips decoded once, kept as WebDataset shards, streamed to a training on any number of processes."""
