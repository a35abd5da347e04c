"""Vision-language models: loading, chat templates, image features, shared prefixes."""
