"""The documentation: pages, and the code that draws their figures and fills their tables."""
