"""The audio-visual model, fusion of its logits, losses, checkpoints."""
