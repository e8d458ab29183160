"""WHAT HAPPENED: facts, their wire form, signatures, and the log they travel on."""
