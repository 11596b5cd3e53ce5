"""The vocabulary all layers share: settings, findings, errors, protocols, optional imports. Imports nothing of ours."""
