"""A local page to look at clips, correct them and learn from it, and a JSON API: `avfs serve` (extra ``app``)."""
