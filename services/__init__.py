"""WHAT TO DO ABOUT IT: the matcher (the one writer), the read-only API, the gateways, the embedded market."""
