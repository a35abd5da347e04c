"""What several tests need: tiny models, harness runs and result files, made on the spot."""
