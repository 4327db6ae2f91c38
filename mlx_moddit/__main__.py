"""`python -m mlx_moddit`."""

from mlx_moddit.cli import main

if __name__ == "__main__":
    main(prog_name="mlx_moddit")
