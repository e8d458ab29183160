"""VOICE: asks and looks."""
