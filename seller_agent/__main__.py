"""`python -m seller_agent`: the same as `bazaar-seller`."""

from seller_agent.cli import main

main()
