"""Routed diffusion transformers on MLX: `Pipeline.load(path).generate(prompt)`."""
