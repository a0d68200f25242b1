"""The decision in virtual time: a seeded world of regions, links and payments around `step`."""
