"""Few-shot methods that are tuned through the frozen towers: CoOp, CoCoOp, MaPLe, CLIP-LoRA."""
