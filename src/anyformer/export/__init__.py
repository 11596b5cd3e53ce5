"""Out of the house: files that other programs run, each proven equal to the model or not written."""
