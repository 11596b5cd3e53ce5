"""The dataflow of a builder export, read from its source (``graph.py`` runs it, ``repair.py`` rewrites it)."""
