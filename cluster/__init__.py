"""What Sluice promises, knows and decides. Imports no sibling package, and neither Ray nor torch at import."""
