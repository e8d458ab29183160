"""What is known of an attempt, what follows from it, how it ended, and whom it is told. Decided here, carried out in `runs`."""
