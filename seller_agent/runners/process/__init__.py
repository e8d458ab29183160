"""Jobs as plain processes: nothing isolates them from the seller's account."""
