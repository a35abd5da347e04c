"""How far a gate in every engine is from the live gate: the maker of docs/engines.md."""
