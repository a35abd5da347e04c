"""A gate in forms that need no code of ours: an IA3 adapter of PEFT, or an ordinary checkpoint."""
