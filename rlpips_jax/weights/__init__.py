"""Where weights come from: registry, search, download, and the two file formats."""
