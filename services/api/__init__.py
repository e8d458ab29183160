"""The read-only window: folds the ledger and answers questions about it."""
