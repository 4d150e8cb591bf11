"""``python -m sdelens``."""

from sdelens.shell.app import app

if __name__ == "__main__":
    app(prog_name="sdelens")
