"""The tests, in rooms like those of the library."""

import gc

gc.disable()  # until all is imported (conftest.py): the libraries' many objects stay, and need not be looked through
