"""A module, the one way to call it, and its loss.

The files here are the doors of the layer; each folder holds the parts of one of them: ``network`` (trust, source),
``files`` and ``building`` (source, construct), ``calls`` (callplan), ``graphs`` (graph, repair).
"""
