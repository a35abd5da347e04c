"""Yes/no answers parsed and counted; POPE with its three parsers."""
