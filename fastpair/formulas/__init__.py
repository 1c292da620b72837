"""The formulas of the pair losses, and what is printed from them. Imports the standard library alone."""
