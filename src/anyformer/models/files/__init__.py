"""A user's Python file as a module: definitions without work, the files beside it, the class that is the model."""
