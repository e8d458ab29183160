"""The Docker daemon of this machine: where it is, and how it is asked without the SDK."""
