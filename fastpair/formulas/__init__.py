"""The formulas of the pair losses, and the printers of code and tables. Imports only the standard library."""
