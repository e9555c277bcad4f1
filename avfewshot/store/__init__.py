"""A collection of clips on disk, embedded second by second: search it, classify it, choose what to label next."""
