"""What finished runs and artifacts say: runs read back, leaderboards, heads compared, one HTML report."""
