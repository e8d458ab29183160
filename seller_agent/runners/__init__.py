"""The ways of running one job: in a container, as a process."""
