"""`python -m mlx_moddit`."""

from mlx_moddit.cli import main

main(prog_name="mlx_moddit")
