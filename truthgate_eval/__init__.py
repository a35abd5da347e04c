"""Find the attention heads that tell truth from hallucination, and gate them."""

from importlib.metadata import version

__version__ = version("truthgate_eval")
