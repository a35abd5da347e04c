"""The small models and pictures that come with the package, so that everything runs offline."""
