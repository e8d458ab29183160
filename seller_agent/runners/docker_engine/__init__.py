"""Jobs in hardened containers, for other people's code."""
