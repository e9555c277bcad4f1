"""The kinds of backbone presets, one file each: what its YAML holds, which files it needs, how it is built."""
