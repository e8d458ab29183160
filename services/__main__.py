"""`python -m services`: the same as `bazaar-market`."""

from services.cli import main

main()
