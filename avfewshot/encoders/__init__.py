"""Frozen CLIP and CLAP: towers for sight and sound, text branches, presets and weights."""
