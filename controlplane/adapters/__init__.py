"""Edges: one third party per file. They import the model, never the decision."""
