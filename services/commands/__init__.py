"""The bodies of the operator's commands; `services/cli.py` lists them."""
