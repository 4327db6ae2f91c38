"""`mlx_moddit plan`: what a model needs and takes on a machine, from its configuration alone."""
