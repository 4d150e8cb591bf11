"""The command `sdelens`."""
