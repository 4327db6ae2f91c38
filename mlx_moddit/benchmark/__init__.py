"""`mlx_moddit benchmark`: what every stage of a generation takes on this machine, each time in a cold process."""
