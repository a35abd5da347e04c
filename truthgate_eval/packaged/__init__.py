"""Models and data that come with the package, so that everything runs offline."""
