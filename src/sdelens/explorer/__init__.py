"""The explorer: a page that shows optimizers, their SDEs and their theory live in the browser; without JAX."""

from sdelens.explorer._page import open_page, page
from sdelens.explorer._settings import settings_of

__all__ = ["open_page", "page", "settings_of"]
