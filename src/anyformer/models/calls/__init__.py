"""The parts of the search for a call: what may be given, where the logits are, what is proven (for ``callplan.py``)."""
