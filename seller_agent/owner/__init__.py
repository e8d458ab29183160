"""What the owner has said of a node, asks of it, and is told about it. Nothing here runs a job."""
