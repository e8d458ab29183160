"""An attempt's way through this node: prepared, started, watched, saved, cleaned up."""
