"""The command-line interface `sdelens`."""
