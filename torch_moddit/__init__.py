"""The PyTorch reference of routed diffusion transformers, and their fine-tuning."""
