"""Which heads are found and gated in every model class of transformers: the maker of docs/models.md."""
