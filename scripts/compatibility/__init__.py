"""What scripts/version_matrix.py runs in each environment, and the page that it writes."""
