"""A module, the one way to call it, and its loss: source, construction, weights, call plan, objectives, example."""
