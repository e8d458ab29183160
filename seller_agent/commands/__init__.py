"""Bodies of the seller's commands; each is loaded when it runs."""
