"""The guard outside the agent, which ends containers in time whoever is dead; and what it is told through files."""
