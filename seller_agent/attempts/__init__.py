"""What is known of an attempt, what follows from it, and how it ended. Decided here, carried out in `runs`."""
