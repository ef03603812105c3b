"""Tools of the visual-dependency study (after arXiv 2410.19732): see README.md."""
