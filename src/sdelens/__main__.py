"""``python -m sdelens``."""

from sdelens.cli import app

app(prog_name="sdelens")
