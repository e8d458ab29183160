"""The buyer inside a running job: what makes a run a session, its tunnels, its work, and whether anybody is there."""
