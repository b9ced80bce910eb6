"""Programs that show what the library does; they run from a checkout."""
