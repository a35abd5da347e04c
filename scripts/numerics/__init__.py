"""How far a run's results move with batch size, order, number of processes, engine and dtype."""
