"""The components of a model: for each what it is, its tensors and its cost; one module an architecture."""
