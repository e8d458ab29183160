"""One node, kept alive: the agent with its beats, and how it is put together from what the owner said."""
