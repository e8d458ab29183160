"""The one writer: admits, expires, matches and accounts, one page a turn."""
