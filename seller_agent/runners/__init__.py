"""The ways of running one job: in a container, as a process, as a process of another machine; and what they all promise."""
