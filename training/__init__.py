"""The training programs; run from a checkout with ``python -m training``, never installed with the
library."""
