"""Score artifacts side by side: correlations, families, heat maps, what controls say of scores."""
