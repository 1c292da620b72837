"""Deliberate faults that the suite has to catch: ``faults.py`` lists them, and ``python -m mutants``, run by
``make mutants``, plants them one after the other into a copy of the working tree."""
