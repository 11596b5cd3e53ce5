"""Other ways to train the same module, each in a small file: ``train(module, pace, steps, folder)``."""
