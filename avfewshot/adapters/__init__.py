"""Cross-modal adapters: trainable modules that connect two frozen towers."""
