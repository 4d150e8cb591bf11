"""``python -m sdelens``."""

from sdelens.cli import app

if __name__ == "__main__":
    app(prog_name="sdelens")
