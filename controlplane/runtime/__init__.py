"""The asyncio shell around the decision core."""
