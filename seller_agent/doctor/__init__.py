"""What a machine needs to sell: looked at, and judged by rules. It changes nothing."""
