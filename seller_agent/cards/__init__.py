"""The cards of this machine: what they are, how they are read, whether they are well, and the machine around them."""
