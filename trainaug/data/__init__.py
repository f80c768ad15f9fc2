"""Data sets: fetched once by the registry's routes, checked by content, loaded from the cache.

``registry`` fetches, verifies and loads by name; ``binary``, ``fashion_mnist``, ``sklearn_sets``
and ``gaussian`` turn the loaded arrays into problems; ``indexed`` gives ``(x, y, index)``.
"""
